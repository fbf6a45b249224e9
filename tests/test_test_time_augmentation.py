import torch
from torch import nn

from onecycle.models import as_composite
from onecycle.test_time_augmentation import Averaged


def test_six_views_count_as_they_should() -> None:
    """A network that tells one pixel's value shows where that pixel came from in each view."""
    network = as_composite(nn.Sequential(nn.Identity(), Pixel(2, 3)))
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    told = Averaged(network)(images)[:, 0]
    at = images[:, 0]
    still = (at[:, 2, 3] + at[:, 2, 8 - 1 - 3]) / 2
    up = (at[:, 1, 2] + at[:, 1, 3]) / 2  # the view shifted down and right shows the pixel above and to the left
    down = (at[:, 3, 4] + at[:, 3, 5]) / 2
    assert torch.allclose(told, 0.5 * still + 0.25 * (up + down))


class Pixel(nn.Module):
    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2, self.row, self.column]
