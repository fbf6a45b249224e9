"""Find hooks on a layer. A replacement of the layer would lose the hooks."""

from torch import nn


def hooked(layer: nn.Module) -> bool:
    """Whether `layer` has hooks. `torch.nn.utils.weight_norm` and `spectral_norm` compute the weight in a hook."""
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(kinds)
