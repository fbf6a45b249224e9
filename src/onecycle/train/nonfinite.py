"""Detect infinity or NaN in training and evaluation, and find the first layer that computed infinity or NaN."""

import torch
from torch import nn

from onecycle.compute.plan import ComputePlan
from onecycle.core.errors import InputError
from onecycle.models import Batch, ModelComposite

ON_A_GPU = "a GPU is not checked at every step, so an earlier step may be the cause"
NO_LAYER = "no single layer is non-finite; only the combined gradients are"


class NonFiniteError(InputError):
    """A training step, an evaluation or the network has a value that is infinity or NaN.

    `what` names the step, the result or the network. `where` says in which part the value is.
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} is not finite: {where}")


def all_finite(loss: torch.Tensor, model: nn.Module) -> bool:
    """Whether `loss` and the gradients of `model` are finite. Waits for the device."""
    # A sum propagates infinity and NaN, and is ten times faster than a maximum or a test of every value.
    sums = [parameter.grad.sum() for parameter in model.parameters() if parameter.grad is not None]
    return bool(torch.isfinite(torch.stack([loss.detach(), *sums])).all())


def weights_finite(model: nn.Module) -> bool:
    """Whether all parameters and buffers of `model` are finite. Waits for the device."""
    return all(bool(torch.isfinite(values).all()) for values in model.state_dict().values())


def first_not_finite(prepared: ModelComposite, batch: Batch, plan: ComputePlan) -> str:
    """Describe the first layer of the `prepared` model that computes infinity or NaN from `batch`.

    Outputs are checked from the first layer to the last, then gradients from the last layer to the first. The
    parameters must hold the gradients of `batch`.
    """
    order: list[str] = []
    outputs: list[str] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, output: object) -> None:
            order.append(name)
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                outputs.append(f"the output of layer {name} ({type(layer).__name__})")

        return layer.register_forward_hook(note)

    leaves = {name: layer for name, layer in prepared.named_modules() if not list(layer.children())}
    hooks = [watch(name, layer) for name, layer in leaves.items()]
    try:
        # A compiled model ignores hooks that were added after compiling.
        with torch.compiler.set_stance("force_eager"), plan.autocast():
            prepared.training_step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if outputs:
        return f"{outputs[0]} is the first with infinity or NaN"
    for name in reversed(order):
        gradients = [p.grad for p in leaves[name].parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return f"the gradient of layer {name} ({type(leaves[name]).__name__}) is the first with infinity or NaN"
    return NO_LAYER
