import os
from pathlib import Path

import numpy as np
import pytest
import torch

from onecycle.data.augment.batched import BatchedAugmentation
from onecycle.data.augment.views import Views
from onecycle.data.store import features
from onecycle.data.store.features import FeatureCache

IMAGES = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
VIEWS = Views(BatchedAugmentation(8, [0, 0, 0], padding=1, cutout=0), 2)
KEY = {"backbone": "a"}


class Counting:
    """Computes the mean color of views, and counts the images. After `fails_after` images, it fails."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.images = 0
        self.fails_after = fails_after

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        if self.images == self.fails_after:
            raise KeyboardInterrupt
        self.images += 1
        return views.float().mean(dim=(1, 2))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 2)
    return tmp_path / "onecycle" / "features"


def expected(images: np.ndarray) -> torch.Tensor:
    return torch.stack([VIEWS.of(image).float().mean(dim=(1, 2)) for image in images])


def compute(images: np.ndarray = IMAGES, views: Views = VIEWS, key: dict[str, str] = KEY) -> int:
    """The number of images whose features had to be computed. All features are checked."""
    counting = Counting()
    found, problem = FeatureCache(counting, key).of(images, views)
    assert problem is None
    assert torch.equal(found, expected(images)[:, : views.count])
    return counting.images


def test_features_are_computed_once_for_each_image_backbone_and_view(own_cache: Path) -> None:
    assert compute() == 5
    assert compute() == 0
    assert compute(IMAGES[[3, 1, 1]]) == 0, "in another set and order"
    assert compute(np.concatenate([IMAGES, 255 - IMAGES[:1]])) == 1, "only the new image"
    assert compute(views=VIEWS.first_only()) == 5
    assert compute(key={"backbone": "b"}) == 5
    assert compute() == 0


def test_an_image_that_occurs_twice_is_computed_once(own_cache: Path) -> None:
    assert compute(IMAGES[[0, 1, 0, 0]]) == 2


def test_no_other_user_can_open_the_folder(own_cache: Path) -> None:
    compute()
    assert {path.stat().st_mode & 0o777 for path in (own_cache, *own_cache.iterdir())} == {0o700}


def test_after_an_interruption_only_the_features_that_were_not_written_are_computed(own_cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(Counting(fails_after=3), KEY).of(IMAGES, VIEWS)
    assert [path.suffix for path in own_cache.rglob("*.*")] == [".safetensors"]
    assert compute() == 3


@pytest.mark.parametrize("damage", ["truncated", "a changed byte", "empty", "another file"])
def test_a_damaged_file_is_removed_and_its_features_are_computed_again(damage: str, own_cache: Path) -> None:
    compute()
    path = sorted(own_cache.rglob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    left = {"truncated": content[:-5], "a changed byte": content, "empty": b"", "another file": b"{}" * 1000}
    path.write_bytes(left[damage])
    assert 1 <= compute() <= 2
    assert compute() == 0


def test_without_room_for_the_cache_the_features_are_given_all_the_same_with_the_reason(own_cache: Path) -> None:
    own_cache.parent.write_bytes(b"")  # a file where the folder should be
    counting = Counting()
    found, problem = FeatureCache(counting, KEY).of(IMAGES, VIEWS)
    assert torch.equal(found, expected(IMAGES))
    assert problem and "cannot be written" in problem


def test_the_caller_is_told_how_many_images_are_computed(own_cache: Path) -> None:
    compute(IMAGES[:2])
    started: list[int] = []
    advanced: list[None] = []
    FeatureCache(Counting(), KEY).of(IMAGES, VIEWS, start=started.append, advance=lambda: advanced.append(None))
    assert (started, len(advanced)) == ([3], 3)
    FeatureCache(Counting(), KEY).of(IMAGES, VIEWS, start=started.append)
    assert started == [3], "nothing is missing"


def test_the_features_that_were_used_longest_ago_are_removed_when_all_are_too_large(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate("cba"):
        compute(key={"backbone": name})
        newest = max(own_cache.iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        os.utime(newest, (1000 + age, 1000 + age))  # "c" is the oldest
    (own_cache / "a file").touch()
    assert compute(key={"backbone": "c"}) == 0, "now it is the newest"
    size = sum(file.stat().st_size for file in newest.iterdir())
    monkeypatch.setattr(features, "MOST_BYTES", 2 * size)
    features.remove_oldest(kept=1)
    assert [compute(key={"backbone": name}) for name in "ca"] == [0, 0]
    assert compute(key={"backbone": "b"}) == 5, "it was removed"
    monkeypatch.setattr(features, "MOST_BYTES", 0)
    features.remove_oldest(kept=2)
    assert [compute(key={"backbone": name}) for name in "bac"] == [0, 0, 5], "the last two are kept"


def test_computed_and_read_features_have_the_same_layout_in_memory(own_cache: Path) -> None:
    def compute(views: torch.Tensor) -> torch.Tensor:
        return views.permute(0, 3, 1, 2).float()  # channels-last, as a network computes them

    computed, _ = FeatureCache(compute, KEY).of(IMAGES, VIEWS)
    read, _ = FeatureCache(compute, KEY).of(IMAGES, VIEWS)
    assert computed.stride() == read.stride() and torch.equal(computed, read)
