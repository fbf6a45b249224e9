import torch
from torch import nn

from onecycle.models import as_composite
from onecycle.models.test_time_augmentation import Averaged


def test_views_count_as_they_should() -> None:
    """A network that tells one pixel's value shows where that pixel came from in each view."""
    network = as_composite(nn.Sequential(nn.Identity(), Pixel(2, 3)))
    images = torch.rand(2, 3, 8, 8)  # so that it is never sure
    told = Averaged(network)(images)[:, 0]
    at = images[:, 0]
    # A shifted view shows a neighbour, and mirrored the neighbour of the pixel across; that pixel is in column 4.
    around = at[:, 1:4, 2:5].sum(dim=(1, 2)) + at[:, 1:4, 3:6].sum(dim=(1, 2))
    assert torch.allclose(told, (at[:, 2, 3] + at[:, 2, 4] + around) / 20)


def test_an_image_that_the_network_is_sure_of_is_looked_at_once_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    network = as_composite(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)))
    unsure = torch.rand(3, 3, 8, 8)
    sure = 100 * torch.rand(2, 3, 8, 8)
    images = torch.cat([unsure[:1], sure, unsure[1:]])
    before = images.clone()
    told = Averaged(network)(images)
    assert torch.equal(images, before)
    assert torch.equal(told[1:3], network(images)[1:3])
    torch.testing.assert_close(told[[0, 3, 4]], Averaged(network)(unsure))
    assert (told[[0, 3, 4]] != network(unsure)).any(dim=1).all()
    assert torch.equal(Averaged(network)(sure), network(sure))


class Pixel(nn.Module):
    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2, self.row, self.column]
