"""What a stand-in for a layer would lose."""

from torch import nn


def hooked(layer: nn.Module) -> bool:
    """Whether something is hooked to `layer`; the weight of the old `weight_norm` is made by a hook, too."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
