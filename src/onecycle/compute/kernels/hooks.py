"""What a stand-in for a layer would lose."""

from torch import nn


def hooked(layer: nn.Module) -> bool:
    """Whether something is hooked to `layer`; the weight of the old `weight_norm` is made by a hook, too."""
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(kinds)
