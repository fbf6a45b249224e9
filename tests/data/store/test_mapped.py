from pathlib import Path

import numpy as np
import pytest

from onecycle.compute import hardware
from onecycle.data import ImageSet, load_dataset
from onecycle.data.preprocessing import Preprocessing, channel_sums
from onecycle.data.store import mapped
from onecycle.data.store.cache import images_folder
from onecycle.data.store.mapped import read_set, resized, subset_of, write_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return images_folder()


def _written(images: ImageSet, folder: Path) -> ImageSet:
    parts = (images.images[start : start + 7] for start in range(0, len(images), 7))
    write_set(folder, "some", parts, images.images.shape, images.labels, images.classes)
    return read_set(folder, "some")


def test_a_set_read_from_files_is_the_same_and_has_its_statistics(
    tiny: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    images = tiny[0]
    read = _written(images, tmp_path)
    assert (read.images == images.images).all() and (read.labels == images.labels).all()
    assert read.statistics
    assert read.fingerprint == images.fingerprint == ImageSet(read.images, read.labels, read.classes).fingerprint
    assert (read.channel_sums == channel_sums(images.images)).all()
    of_sums = Preprocessing.of_sums(read.channel_sums, images=len(read), input_size=32, gray=read.is_gray)
    assert of_sums == Preprocessing.of(images.images)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"0", lambda content: b""])
def test_a_damaged_set_is_refused(damage, tiny: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _written(tiny[0], tmp_path)
    file = tmp_path / "some_images.npy"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError):
        read_set(tmp_path, "some")


def test_a_large_resized_set_is_cached_and_equals_a_small_one(
    tiny: tuple[ImageSet, ImageSet], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = resized(tiny[0], 40)
    assert not own_cache.exists() and small.images.shape == (50, 40, 40, 3)
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    for _ in range(2):
        large = resized(tiny[0], 40)
        assert large.fingerprint == small.fingerprint and (large.images == small.images).all()
    assert len(list(own_cache.iterdir())) == 1
    assert resized(tiny[0], 32) is tiny[0]


def test_a_set_larger_than_memory_can_be_read(tmp_path: Path) -> None:
    count = int(hardware.detect().memory_gib * 3 * 2**30) // (1024 * 1024 * 3)
    with (tmp_path / "some_images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 1024, 1024, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * 1024 * 1024 * 3)  # a sparse file: zeros take no space
    np.save(tmp_path / "some_labels.npy", np.zeros(count, np.int64))
    (tmp_path / "some.json").write_text('{"classes": ["a"], "fingerprint": "", "channel_sums": [[0, 0, 0], [0, 0, 0]]}')
    images = read_set(tmp_path, "some").images
    images[-1, 0, 0] = 7
    assert (len(images), images[-1].max(), images[count // 2].max()) == (count, 7, 0)


def test_a_large_subset_is_in_the_cache_and_equals_one_in_memory(
    tiny: tuple[ImageSet, ImageSet], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([30, 2, 7, 41])
    in_memory = subset_of(tiny[0], rows)
    assert not own_cache.exists()
    monkeypatch.setattr(mapped, "IN_MEMORY", 3 * 32 * 32 * 3)
    first = subset_of(tiny[0], rows)
    (entry,) = own_cache.iterdir()
    written = entry.stat().st_mtime_ns
    assert first.fingerprint == in_memory.fingerprint == subset_of(tiny[0], rows).fingerprint
    assert (first.images == in_memory.images).all()
    assert [path.stat().st_mtime_ns for path in own_cache.iterdir()] == [written]
    assert subset_of(tiny[0], rows[::-1]).labels.tolist() == in_memory.labels[::-1].tolist()


def test_validation_and_limit_give_the_same_sets_in_memory_and_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_dataset("digits", validation=200, limit=300)
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    large = load_dataset("digits", validation=200, limit=300)
    assert large.train.statistics and large.fingerprint == small.fingerprint
