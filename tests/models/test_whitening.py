import pytest
import torch
from torch.nn import functional

from onecycle.data import ImageSet
from onecycle.data.preprocessing import Preprocessing
from onecycle.models.whitening import whitening_filters


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


def test_directions_without_variance_give_finite_filters() -> None:
    gray = torch.linspace(-1, 1, 6 * 8 * 8).view(6, 1, 8, 8).expand(6, 3, 8, 8)  # the three channels are equal
    filters = whitening_filters(gray)
    assert torch.isfinite(filters).all()
    assert float(functional.conv2d(gray, filters).abs().max()) < 10


def test_the_filters_do_not_depend_on_the_memory_layout(images: torch.Tensor) -> None:
    assert torch.equal(
        whitening_filters(images), whitening_filters(images.contiguous(memory_format=torch.channels_last))
    )
