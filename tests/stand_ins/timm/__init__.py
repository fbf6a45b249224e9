"""A stand-in for timm, with the part of its interface that onecycle uses, and networks that are tiny.

The tests import it where timm is needed: timm itself needs torchvision, which has no build for every torch.
"""

import torch
from torch import nn

__version__ = "1.0"
PRETRAINED_SEED = 1


class Tiny(nn.Module):
    """A network as timm makes it: `num_features` channels in its last feature map, and how images are normalized."""

    num_features = 6
    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, self.num_features, kernel_size=4, stride=4, bias=False),
            nn.BatchNorm2d(self.num_features),
            nn.ReLU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(images)
        return features


class Tokens(Tiny):
    """A network without a feature map, like a vision transformer: it gives `[B,tokens,channels]`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).flatten(2).transpose(1, 2)


def create_model(name: str, *, pretrained: bool, num_classes: int, global_pool: str) -> nn.Module:
    """The network `name`. Its "pretrained" weights are random, but always the same."""
    assert (num_classes, global_pool) == (0, ""), "only then does timm give the feature map"
    if name == "offline" and pretrained:
        raise OSError("there is no connection\nto the hub")
    if name not in ("tiny", "tokens", "offline"):
        raise RuntimeError(f"Unknown model ({name})")
    with torch.random.fork_rng():
        torch.manual_seed(PRETRAINED_SEED if pretrained else 0)
        return Tokens() if name == "tokens" else Tiny()
