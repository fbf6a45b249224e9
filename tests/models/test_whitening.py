from pathlib import Path

import pytest
import torch
from torch.nn import functional

from onecycle.data import ImageSet, load_dataset
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import whitening
from onecycle.models.whitening import whitening_filters
from onecycle.run.build import WHITENING_IMAGES


@pytest.fixture
def images(tiny: tuple[ImageSet, ImageSet]) -> torch.Tensor:
    """Digits with mean zero, plus noise, so that every direction has some variance."""
    pixels = tiny[0].images
    images = Preprocessing.of(pixels).normalize(torch.from_numpy(pixels.copy())).contiguous()
    images = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images - images.mean(dim=(0, 2, 3), keepdim=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_outputs_of_the_filters_have_the_identity_as_covariance(images: torch.Tensor, size: int) -> None:
    filters = whitening_filters(images, size, epsilon=0)
    assert filters.shape == (3 * size**2, 3, size, size)
    outputs = functional.conv2d(images.double(), filters.double()).transpose(0, 1).flatten(1)  # [filters, patches]
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(covariance, torch.eye(len(filters), dtype=torch.float64), atol=1e-3)


def test_gray_images_have_filters_for_brightness_only() -> None:
    gray = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sub(0.5).expand(6, 3, 8, 8)
    filters = whitening_filters(gray)
    assert torch.isfinite(filters).all()
    assert distinct(filters) == 4  # one for each of the 4 pixels of a patch
    assert float(functional.conv2d(gray, filters).std(dim=(0, 2, 3)).min()) > 0.5  # no output is constant
    colors = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    colors -= colors.mean(dim=1, keepdim=True)  # no brightness
    assert float(functional.conv2d(colors, filters).abs().max()) < 1e-5


@pytest.mark.parametrize(("levels", "found"), [(0.1, 4), (0.3, 4), (8, 12)])
def test_colors_as_faint_as_rounding_are_left_out(levels: float, found: int) -> None:
    """Gray photographs that a camera or an encoder tinted by fractions of a gray level are as good as gray."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.rand(20, 1, 9, 9, generator=generator).mul(255).round()
    tint = torch.randn(20, 3, 9, 9, generator=generator)
    pixels = (brightness + levels * (tint - tint.mean(dim=1, keepdim=True)) / tint.std()) / 255
    assert distinct(whitening_filters((pixels - pixels.mean()) / pixels.std())) == found


def test_flat_images_have_finite_filters() -> None:
    assert torch.isfinite(whitening_filters(torch.zeros(3, 3, 8, 8))).all()


def distinct(filters: torch.Tensor) -> int:
    """The number of different filters."""
    return len(torch.unique(filters, dim=0))


def test_the_filters_do_not_depend_on_the_memory_layout(images: torch.Tensor) -> None:
    assert torch.equal(
        whitening_filters(images), whitening_filters(images.contiguous(memory_format=torch.channels_last))
    )


def test_cifar10_has_no_direction_to_leave_out(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks for CIFAR-10 are the same bits as before directions were left out."""
    train = load_dataset(real_data / "cifar-10-binary.tar.gz").train
    pixels = train.images[:: len(train) // WHITENING_IMAGES]
    images = Preprocessing.of(train.images).normalize(torch.from_numpy(pixels))
    filters = whitening_filters(images)
    monkeypatch.setattr(whitening, "SMALLEST_SHARE", 0)
    assert torch.equal(filters, whitening_filters(images))
    assert distinct(filters) == 12
