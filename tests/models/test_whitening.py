import pytest
import torch
from torch.nn import functional

from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models.whitening import whitening_filters


@pytest.fixture
def images(tiny: tuple[ImageSet, ImageSet]) -> torch.Tensor:
    """Digits with noise, so that no direction is empty, of a mean of zero."""
    pixels = tiny[0].images
    images = Preprocessing.of(pixels).normalize(torch.from_numpy(pixels.copy())).contiguous()
    images = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images - images.mean(dim=(0, 2, 3), keepdim=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_the_filters_give_has_the_identity_as_its_covariance(images: torch.Tensor, size: int) -> None:
    filters = whitening_filters(images, size, epsilon=0)
    assert filters.shape == (3 * size**2, 3, size, size)
    outputs = functional.conv2d(images.double(), filters.double()).transpose(0, 1).flatten(1)  # [filters, patches]
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(covariance, torch.eye(len(filters), dtype=torch.float64), atol=1e-3)


def test_directions_in_which_images_do_not_differ_stay_finite() -> None:
    grey = torch.linspace(-1, 1, 6 * 8 * 8).view(6, 1, 8, 8).expand(6, 3, 8, 8)  # all channels alike
    filters = whitening_filters(grey)
    assert torch.isfinite(filters).all()
    assert float(functional.conv2d(grey, filters).abs().max()) < 10


def test_the_filters_do_not_depend_on_the_memory_layout(images: torch.Tensor) -> None:
    assert torch.equal(
        whitening_filters(images), whitening_filters(images.contiguous(memory_format=torch.channels_last))
    )
