"""A way to run a model: device, precision, layout, kernels. It prepares a copy; the network's layers never change."""

import copy
import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any, Self, TypeVar

import torch
from torch import nn

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import native, tiles
from onecycle.compute.kernels.batch_norm_activation import BatchNormActivation2d
from onecycle.compute.kernels.convolution import FastConv2d
from onecycle.compute.kernels.max_pool import MaxPool2x2
from onecycle.core.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a run computes: chosen once, stored in the run, and reused by its LR finder, resume and evaluation.

    The defaults are plain PyTorch on the CPU. `autotune` chooses.
    """

    device: str = "cpu"
    precision: str = "float32"  # of the forward and backward pass; parameters and optimizer are float32
    channels_last: bool = False
    small_map_products: bool = False  # convolutions on small maps as matrix products
    native_kernels: bool = False  # batch norm with its activation, and max-pooling, compiled from C for this CPU
    matrix_unit: bool = False  # of the CPU, for convolutions: also compiled from C
    torch_compile: bool = False
    threads: int | None = None  # None: PyTorch's own number

    def __str__(self) -> str:
        parts = {
            "channels-last": self.channels_last,
            "small maps as products": self.small_map_products,
            "native kernels": self.native_kernels,
            "matrix unit": self.matrix_unit,
            "torch.compile": self.torch_compile,
        }
        return ", ".join([self.precision, *(name for name, used in parts.items() if used)])

    def require(self, hardware: Hardware) -> None:
        """Refuse what this machine cannot do.

        Raises:
            InputError: when it lacks the device, the native kernels or the compiler cannot be had.
        """
        require_device(hardware, self.device)
        if self.torch_compile and find_spec("triton") is None:
            raise InputError("this was computed with torch.compile, which needs triton; pip install triton")
        if (self.native_kernels or self.matrix_unit) and native.compiled() is None:
            raise InputError(
                "this was computed with native kernels, which need a C compiler with OpenMP (gcc) on Linux and a cache "
                "folder that can be written; install one, or set CC to it"
            )
        if self.matrix_unit and not tiles.can_be_used():
            raise InputError(
                "this was computed on a CPU's matrix unit (AMX), which needs such a CPU, Linux 5.16 and gcc 11; "
                f"this is {hardware.cpu}"
            )

    def apply(self) -> None:
        """Set this process up: the number of threads, and an allocator that keeps large blocks."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _keep_large_blocks()
        # The shapes are the same in every step: worth finding the fastest algorithm for.
        torch.backends.cudnn.benchmark = self.device == "cuda"

    def prepare(self, model: Model) -> Model:
        """A copy of `model` that runs the fast way on the same parameters and buffers: training it trains `model`.

        Their values stay as they are; `channels_last` changes how filters lie in memory.
        """
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        running = copy.deepcopy(model, shared)  # what the memo knows is shared, not copied
        if self.small_map_products or self.matrix_unit:
            _replace_convolutions(running, products=self.small_map_products, matrix_unit=self.matrix_unit)
        if self.native_kernels:
            _replace_norms_and_pools(running)
        if not self.channels_last:
            running.register_forward_pre_hook(_with_contiguous_images)  # batches come channels-last
        else:
            # Not `running.to(…)`, which would put new tensors in the place of shared buffers.
            for parameter in running.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self.torch_compile:
            running.compile(dynamic=False)  # the last batch of an epoch is compiled for, too
        return running

    def for_evaluation(self) -> Self:
        """The same without what only training needs, so that a run can be evaluated on other machines.

        Norms and pools are PyTorch's own in evaluation, which compiles nothing either. A matrix unit rounds in another
        order, so where there is none the result may differ in its last digits.
        """
        matrix_unit = self.matrix_unit and tiles.can_be_used()
        return replace(self, native_kernels=False, matrix_unit=matrix_unit, torch_compile=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the forward pass runs."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return nullcontext()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


PLAIN = Acceleration()


def require_device(hardware: Hardware, device: str) -> None:
    """Refuse a device that `hardware` does not have; "auto" is any.

    Raises:
        InputError: naming the devices it has.
    """
    if device not in ("auto", "cpu", hardware.gpu_kind):
        has = f"cpu and {hardware.gpu_kind}" if hardware.gpu_kind else "only cpu"
        raise InputError(f"device {device} is asked for, and this machine has {has}")


def _with_contiguous_images(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    images, *others = inputs
    return images.contiguous(), *others


def _replace_convolutions(running: nn.Module, *, products: bool, matrix_unit: bool) -> None:
    for parent in list(running.modules()):
        for name, layer in parent.named_children():
            if FastConv2d.replaces(layer):
                assert isinstance(layer, nn.Conv2d)
                setattr(parent, name, FastConv2d.sharing(layer, products=products, matrix_unit=matrix_unit))


def _replace_norms_and_pools(running: nn.Module) -> None:
    for parent in list(running.modules()):
        for name, layer in parent.named_children():
            if MaxPool2x2.replaces(layer):
                setattr(parent, name, MaxPool2x2().train(layer.training))
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            # Here the activation takes what the norm gives, and nothing else, unless a parent reaches for the parts.
            for place in range(len(parent) - 1):
                norm, activation = parent[place], parent[place + 1]
                if BatchNormActivation2d.replaces(norm, activation):
                    assert isinstance(norm, nn.BatchNorm2d)
                    parent[place] = BatchNormActivation2d.sharing(norm, activation)
                    parent[place + 1] = nn.Identity().train(norm.training)


def _keep_large_blocks() -> None:
    """Make glibc's allocator keep freed memory: giving it back and faulting it in again takes a good part of a step."""
    m_trim_threshold, m_mmap_max = -1, -4
    if libc := _glibc():
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def release_memory() -> None:
    """Give back what the allocator was made to keep: a process forked from this one would hold a copy of it."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None
