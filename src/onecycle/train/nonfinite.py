"""Whether a training step is finite, and where it is not: the layer that was the first to compute infinity or NaN."""

import torch
from torch import nn

from onecycle.compute.plan import Acceleration
from onecycle.core.errors import InputError
from onecycle.models import Batch, ModelComposite

NOT_LOOKED_AT = "that came about in this step or one before it, which are not looked at one by one on a GPU"

NO_LAYER = "no layer by itself, but their gradients are not"


class NonFiniteError(InputError):
    """A loss or a gradient is infinity or NaN at `step` (0-based, global); `where` says which layer was the first."""

    def __init__(self, step: int, where: str) -> None:
        super().__init__(f"step {step} is not finite: {where}")
        self.step = step
        self.where = where


def all_finite(loss: torch.Tensor, model: nn.Module) -> bool:
    """Whether `loss` and the gradients of `model` are finite. It waits for the device."""
    # A sum keeps infinity and NaN, and takes a tenth of the time of looking for the largest or at every number.
    sums = [parameter.grad.sum() for parameter in model.parameters() if parameter.grad is not None]
    return bool(torch.isfinite(torch.stack([loss.detach(), *sums])).all())


def weights_finite(model: nn.Module) -> bool:
    """Whether the parameters and buffers of `model` are finite. It waits for the device."""
    return all(bool(torch.isfinite(values).all()) for values in model.state_dict().values())


def first_not_finite(running: ModelComposite, batch: Batch, acceleration: Acceleration) -> str:
    """The layer of `running`, a model that `acceleration` has prepared, where `batch` first gives infinity or NaN.

    `running` has the gradients of `batch`. They are computed from its last layer to its first, the other way round.
    """
    order: list[str] = []
    outputs: list[str] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, output: object) -> None:
            order.append(name)
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                outputs.append(f"the output of layer {name} ({type(layer).__name__})")

        return layer.register_forward_hook(note)

    leaves = {name: layer for name, layer in running.named_modules() if not list(layer.children())}
    hooks = [watch(name, layer) for name, layer in leaves.items()]
    try:
        # What is compiled knows nothing of hooks that came later.
        with torch.compiler.set_stance("force_eager"), acceleration.autocast():
            running.training_step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if outputs:
        return f"{outputs[0]} is the first that is not"
    for name in reversed(order):
        gradients = [p.grad for p in leaves[name].parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return f"the gradient of layer {name} ({type(leaves[name]).__name__}) is the first that is not"
    return NO_LAYER
