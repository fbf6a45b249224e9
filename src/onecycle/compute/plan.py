"""The compute plan of a run: device, precision, memory layout and kernels."""

import copy
import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any, Self, TypeVar

import torch
from torch import nn

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import amx, native
from onecycle.compute.kernels.batch_norm_activation import BatchNormActivation2d
from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.kernels.max_pool import MaxPool2x2
from onecycle.core.errors import InputError
from onecycle.core.validated import Between, validated

Model = TypeVar("Model", bound=nn.Module)
MOST_THREADS = 1024
ChannelPairs = tuple[tuple[int, int], ...]  # the input and output channels of convolutions


@dataclass(frozen=True, kw_only=True)
class ComputePlan:
    """How a run computes.

    The plan is chosen once and stored in the run folder. The LR finder, training, resume and evaluation use this plan.

    The defaults are eager PyTorch on the CPU. `autotune.choose` finds the fastest plan.
    """

    device: str = "cpu"
    precision: str = "float32"  # precision of the forward and backward pass; parameters and optimizer are float32
    channels_last: bool = False
    im2col_gemm: bool = False  # compute convolutions on small maps by im2col and a matrix product
    native_kernels: bool = False  # compute max-pooling, and batch norm with the activation after it, in C for this CPU
    amx: bool = False  # compute convolutions in C with AMX, the matrix extensions of some x86 CPUs
    winograd: ChannelPairs = ()  # the 3×3 convolutions to compute by Winograd's algorithm, in C
    torch_compile: bool = False
    threads: Annotated[int, Between(1, MOST_THREADS)] | None = None  # None: PyTorch's default

    def __str__(self) -> str:
        parts = {
            "channels-last": self.channels_last,
            "im2col GEMM": self.im2col_gemm,
            "native kernels": self.native_kernels,
            "AMX": self.amx,
            "Winograd": self.winograd,
            "torch.compile": self.torch_compile,
        }
        return ", ".join([self.precision, *(name for name, used in parts.items() if used)])

    @property
    def compiled_kernels(self) -> bool:
        """Whether the plan uses kernels in C that are compiled for this machine."""
        return self.native_kernels or self.amx or bool(self.winograd)

    def require(self, hardware: Hardware) -> None:
        """Check that this machine can carry out the plan.

        Raises:
            InputError: when the device, AMX, the C compiler or triton is missing.
        """
        require_device(hardware, self.device)
        if self.torch_compile and find_spec("triton") is None:
            raise InputError("this run computes with torch.compile, which needs triton; pip install triton")
        if self.compiled_kernels and native.compiled() is None:
            raise InputError(
                f"this run computes with kernels in C, which are missing here, because {native.why_missing()}"
            )
        if self.amx and not amx.is_available():
            raise InputError(
                "this run computes with AMX, which needs a CPU that supports it, Linux 5.16 or later, and gcc 11 or "
                f"later; this CPU is {hardware.cpu}"
            )

    def apply(self) -> None:
        """Set the number of threads of this process, and make its allocator keep freed memory."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _keep_large_blocks()
        # Every step has the same shapes, so searching for the fastest algorithm pays off.
        torch.backends.cudnn.benchmark = self.device == "cuda"

    def prepare(self, model: Model) -> Model:
        """A copy of `model` that computes by this plan. Training the copy trains `model`.

        The copy and `model` share parameters and buffers. With `channels_last`, the memory layout of the filters
        changes, but their values stay the same.
        """
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        prepared = copy.deepcopy(model, shared)  # deepcopy does not copy tensors that are in its memo
        if self.im2col_gemm or self.amx or self.winograd:
            _replace_convolutions(prepared, self)
        if self.native_kernels:
            _replace_norms_and_pools(prepared)
        if not self.channels_last:
            prepared.register_forward_pre_hook(_make_images_contiguous)  # batches arrive channels-last
        else:
            # `prepared.to(…)` would replace shared buffers by new tensors.
            for parameter in prepared.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self.torch_compile:
            prepared.compile(dynamic=False)  # the model is compiled once more for the short last batch
        return prepared

    def for_evaluation(self) -> Self:
        """A variant of this plan for evaluation. It works on every machine that has the plan's device.

        The variant uses PyTorch's own batch norm and pooling. It does not use `torch.compile`. It uses AMX and
        Winograd's algorithm only if this machine has them; without them, results may differ in the last digits.
        """
        return replace(
            self,
            native_kernels=False,
            amx=self.amx and amx.is_available(),
            winograd=self.winograd if native.compiled() is not None else (),
            torch_compile=False,
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context for the forward pass."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return nullcontext()

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "winograd": [list(pair) for pair in self.winograd]}
        if not self.winograd:
            del values["winograd"]  # so the plan equals plans that were recorded before this field existed
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: when a value is not allowed.
        """
        plan = validated(cls, values)
        if plan.device not in _DEVICES or plan.precision not in _PRECISIONS:
            raise ValueError(f"there is no device {plan.device!r} with precision {plan.precision!r}")
        return plan


_DEVICES, _PRECISIONS = ("cpu", "cuda", "mps"), ("float32", "bfloat16")
EAGER = ComputePlan()


def require_device(hardware: Hardware, device: str) -> None:
    """Check that `hardware` has the device `device`. "auto" matches any device.

    Raises:
        InputError: when the device is missing. The message lists the available devices.
    """
    if device not in ("auto", "cpu", hardware.gpu_kind):
        has = f"cpu and {hardware.gpu_kind}" if hardware.gpu_kind else "only cpu"
        raise InputError(f"--device is {device}, but this machine has {has}; use --device auto")


def _make_images_contiguous(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    images, *others = inputs
    return images.contiguous(), *others


def _replace_convolutions(prepared: nn.Module, plan: ComputePlan) -> None:
    for parent in list(prepared.modules()):
        for name, layer in parent.named_children():
            if FastConv2d.replaces(layer):
                assert isinstance(layer, nn.Conv2d)
                winograd = (layer.in_channels, layer.out_channels) in plan.winograd
                fast = FastConv2d.sharing(layer, winograd=winograd, im2col_gemm=plan.im2col_gemm, amx=plan.amx)
                setattr(parent, name, fast)


def _replace_norms_and_pools(prepared: nn.Module) -> None:
    for parent in list(prepared.modules()):
        for name, layer in parent.named_children():
            if MaxPool2x2.replaces(layer):
                setattr(parent, name, MaxPool2x2().train(layer.training))
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            # In a Sequential, only the activation reads the norm's output, so one layer can replace both.
            for place in range(len(parent) - 1):
                norm, activation = parent[place], parent[place + 1]
                if BatchNormActivation2d.replaces(norm, activation):
                    assert isinstance(norm, nn.BatchNorm2d)
                    parent[place] = BatchNormActivation2d.sharing(norm, activation)
                    parent[place + 1] = nn.Identity().train(norm.training)


def _keep_large_blocks() -> None:
    """Make glibc's allocator keep freed memory. Otherwise page faults take a large part of each step."""
    m_trim_threshold, m_mmap_max = -1, -4
    if libc := _glibc():
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def release_memory() -> None:
    """Return the allocator's free memory to the system. Otherwise forked processes would copy it."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None
