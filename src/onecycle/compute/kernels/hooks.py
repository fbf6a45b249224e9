"""Find out whether a layer has hooks. If another layer replaced it, the hooks would be lost."""

from torch import nn


def hooked(layer: nn.Module) -> bool:
    """Whether `layer` has hooks. `torch.nn.utils.weight_norm` and `spectral_norm` compute the weight in a hook."""
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(kinds)
