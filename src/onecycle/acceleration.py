"""The fastest way to run a model on this hardware. Prepares a copy for running; the network itself never changes."""

import copy
import ctypes
import platform
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import torch
from torch import nn

from onecycle.config import Device, Precision
from onecycle.errors import InputError
from onecycle.hardware import Hardware
from onecycle.kernels.small_map_convolution import SmallMapConv2d

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a run computes: chosen once, stored in the run, and reused by its LR finder, resume and evaluation.

    The defaults are plain PyTorch on the CPU.
    """

    device: str = "cpu"
    precision: str = "float32"  # of the forward and backward pass; parameters and optimizer are float32
    channels_last: bool = False
    small_map_products: bool = False  # small-map convolutions as matrix products, see kernels
    threads: int | None = None  # None: PyTorch's own number

    def apply(self) -> None:
        """Set this process up: the number of threads, and an allocator that keeps large blocks."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _keep_large_blocks()

    def prepare(self, model: Model) -> Model:
        """A copy of `model` that runs the fast way on the same parameters and buffers: training it trains `model`."""
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        running = copy.deepcopy(model, shared)  # what the memo knows is shared, not copied
        if self.small_map_products:
            for parent in list(running.modules()):
                for name, layer in parent.named_children():
                    if SmallMapConv2d.replaces(layer):
                        assert isinstance(layer, nn.Conv2d)
                        setattr(parent, name, SmallMapConv2d.sharing(layer))
        if self.channels_last:
            # Not `running.to(…)`, which would put new tensors in the place of shared buffers.
            for parameter in running.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return running

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the forward pass runs."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


PLAIN = Acceleration()


def choose(hardware: Hardware, *, device: Device = "auto", precision: Precision = "auto") -> Acceleration:
    """The way to run on `hardware`, with what the user asked for.

    Raises:
        InputError: when the machine does not have the device.
    """
    chosen = (hardware.gpu_kind or "cpu") if device == "auto" else device
    require_device(hardware, chosen)
    if precision == "auto":
        # bfloat16 that has to be emulated is slower than float32.
        fast = hardware.fast_bfloat16 if chosen == "cpu" else hardware.gpu_fast_bfloat16
        precision = "bfloat16" if fast else "float32"
    return Acceleration(
        device=chosen,
        precision=precision,
        channels_last=True,
        small_map_products=chosen == "cpu" and precision == "bfloat16",
        threads=hardware.cores,
    )


def require_device(hardware: Hardware, device: str) -> None:
    """Refuse a device that `hardware` does not have.

    Raises:
        InputError: naming the devices it has.
    """
    if device not in ("cpu", hardware.gpu_kind):
        has = f"cpu and {hardware.gpu_kind}" if hardware.gpu_kind else "only cpu"
        raise InputError(f"device {device} is asked for, and this machine has {has}")


def _keep_large_blocks() -> None:
    """Make glibc's allocator keep freed memory: giving it back and faulting it in again takes a good part of a step."""
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)
