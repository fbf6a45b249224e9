from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Architecture, CustomResNet, WhitenedConvNet


@pytest.fixture
def network() -> WhitenedConvNet:
    torch.manual_seed(0)
    return WhitenedConvNet(10, 32, (16, 24, 32))


@pytest.mark.parametrize("size", [9, 16, 24, 28, 32, 33])
def test_it_takes_images_of_any_size_from_9_pixels_up(network: WhitenedConvNet, size: int) -> None:
    assert network(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("classes", "size", "message"),
    [(1, 32, "at least 2 classes, not 1"), (10, 8, "8×8 are too small: .*; use 9×9 or more")],
)
def test_one_class_and_too_small_images_are_refused(classes: int, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WhitenedConvNet(classes, size)


def test_it_has_as_many_parameters_as_airbench_with_the_same_widths() -> None:
    """The frozen parameters are the scales of the norms, 2 × (64 + 256 + 256), and the whitening filters, 24 × 12."""
    network = WhitenedConvNet()
    network.whiten(torch.randn(4, 3, 32, 32))
    summary = network.summary((3, 32, 32))
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    biases = 2 * (64 + 256 + 256)
    assert summary.trainable_parameters == filters + biases + 24 + 2560
    assert summary.parameters == summary.trainable_parameters + biases + 24 * 12


def test_whitening_gives_uncorrelated_channels_and_their_negatives(
    network: WhitenedConvNet, tiny: tuple[ImageSet, ImageSet]
) -> None:
    colored = (tiny[0].images / 2 + np.random.default_rng(0).integers(0, 128, tiny[0].images.shape)).astype(np.uint8)
    images = Preprocessing.of(colored).normalize(torch.from_numpy(colored))
    network.whiten(images)
    outputs = functional.conv2d(images, network.whitening.weight)  # [N,24,31,31]
    assert torch.allclose(outputs[:, :12], -outputs[:, 12:], atol=1e-4)
    rows = outputs[:, :12].transpose(0, 1).flatten(1).double()
    covariance = rows @ rows.T / rows.shape[1]
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert float(off_diagonal.abs().max()) < 0.02
    assert not network.whitening.weight.requires_grad


def test_identity_initialization_passes_inputs_through_every_convolution(network: WhitenedConvNet) -> None:
    network.initialize_as_identity()
    for layer in network.groups.modules():
        if isinstance(layer, torch.nn.Conv2d):
            inputs = torch.randn(1, layer.in_channels, 5, 5)
            outputs = functional.conv2d(inputs, layer.weight, padding=1)
            passed = min(layer.in_channels, layer.out_channels)
            assert torch.equal(outputs[:, :passed], inputs[:, :passed])


def test_each_residual_group_adds_two_convolutions_to_the_output_of_its_first() -> None:
    """Parameters: as airbench96 of the same widths."""
    torch.manual_seed(0)
    network = WhitenedConvNet(10, 32, (16, 24, 32), residual=True)
    network.initialize_as_identity()
    convolutions = [layer for layer in network.groups.modules() if isinstance(layer, torch.nn.Conv2d)]
    sizes = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert sizes == [(24, 16), (16, 16), (16, 16), (16, 24), (24, 24), (24, 24), (24, 32), (32, 32), (32, 32)]
    images = torch.randn(2, 24, 12, 12)
    group = network.groups[0].eval()
    first = group[:4](images)
    assert first.shape == (2, 16, 6, 6)
    assert torch.equal(group(images), first + group[4].branch(first))
    assert network(torch.randn(2, 3, 9, 9)).shape == (2, 10)


def test_an_architecture_is_rebuilt_from_its_json() -> None:
    architecture = Architecture(network="whitened_convnet", widths=(8, 16, 24), activation="hardswish")
    deeper = replace(architecture, residual=True)
    assert Architecture.from_json(deeper.to_json()) == deeper
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in deeper.build(5, 32).modules()) == 10
    loaded = Architecture.from_json(architecture.to_json())
    assert loaded == architecture
    built = loaded.build(5, 32)
    assert isinstance(built, WhitenedConvNet)
    assert built.linear.weight.shape == (5, 24)
    assert sum(isinstance(layer, torch.nn.Hardswish) for layer in built.modules()) == 7
    assert not any(isinstance(layer, torch.nn.ReLU) for layer in built.modules())
    assert isinstance(Architecture().build(10, 32), CustomResNet)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "resnet"},
        {"widths": [8, 16]},
        {"widths": [8, 16, "x"]},
        {"activation": "gelu"},
        {"widths": [8, 8, 60_000]},
    ],
)
def test_an_unknown_architecture_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^(network|widths|activation) (is|has) .*; it must "):
        Architecture.from_json(Architecture().to_json() | changes)
