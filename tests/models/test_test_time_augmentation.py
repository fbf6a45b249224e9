import torch
from torch import nn

from onecycle.models import as_composite
from onecycle.models.test_time_augmentation import TestTimeAugmentation


def test_unshifted_copies_count_twice_and_shifted_ones_once() -> None:
    """The network returns the pixel at a fixed place of each copy, which shows how the copy was shifted."""
    network = as_composite(nn.Sequential(nn.Identity(), Pixel(2, 3)))
    images = torch.rand(2, 3, 8, 8)  # two logits in [0, 1): no probability reaches 0.8, so all images are averaged
    averaged = TestTimeAugmentation(network)(images)[:, 0]
    pixels = images[:, 0]
    # A mirrored copy shows pixel (2,4) instead of (2,3). A shifted copy shows a neighbor of (2,3), or of (2,4) if it is
    # also mirrored.
    neighbors = pixels[:, 1:4, 2:5].sum(dim=(1, 2)) + pixels[:, 1:4, 3:6].sum(dim=(1, 2))
    assert torch.allclose(averaged, (pixels[:, 2, 3] + pixels[:, 2, 4] + neighbors) / 20)


def test_a_confident_image_is_evaluated_once_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    network = as_composite(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)))
    unsure = torch.rand(3, 3, 8, 8)
    confident = 100 * torch.rand(2, 3, 8, 8)
    images = torch.cat([unsure[:1], confident, unsure[1:]])
    before = images.clone()
    logits = TestTimeAugmentation(network)(images)
    assert torch.equal(images, before)
    assert torch.equal(logits[1:3], network(images)[1:3])
    torch.testing.assert_close(logits[[0, 3, 4]], TestTimeAugmentation(network)(unsure))
    assert (logits[[0, 3, 4]] != network(unsure)).any(dim=1).all()
    assert torch.equal(TestTimeAugmentation(network)(confident), network(confident))


class Pixel(nn.Module):
    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2, self.row, self.column]
