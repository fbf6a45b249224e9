import tracemalloc
from pathlib import Path

import numpy as np

from onecycle.data.image_files import suffixes
from onecycle.data.readers.entries import Entry
from onecycle.data.store.index import index_of
from onecycle.data.store.listing import Listing, listing_of, located


def _file(*parts: str) -> Entry:
    return Entry(parts, False, bytes)


def test_a_listing_has_all_images_and_all_folders(image_folder: Path) -> None:
    listing = listing_of(image_folder)
    names = [name for _, name in located([listing], np.arange(len(listing)))]
    files = [path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png")]
    assert sorted(names) == sorted(files)
    assert {("train",), ("test", "9")} <= set(listing.folders)


def test_only_the_folder_of_another_file_is_recorded(tmp_path: Path) -> None:
    listing = Listing(tmp_path)
    assert [listing.add(_file("a", "1.png")), listing.add(_file("b", "notes.txt"))] == [True, False]
    assert (len(listing), list(listing.folders)) == (1, [("a",), ("b",)])


def test_a_saved_listing_is_loaded_unchanged_even_with_names_that_are_not_valid_text(tmp_path: Path) -> None:
    listing = Listing(tmp_path)
    for name in ("ä.png", "\udcff.png", "雪.png"):
        listing.add(_file("a\udcfe", name))
    listing.save(tmp_path)
    loaded = Listing.load(tmp_path, tmp_path)
    assert loaded == listing
    assert [name for _, name in located([loaded], np.arange(3))] == [
        "a\udcfe/ä.png",
        "a\udcfe/\udcff.png",
        "a\udcfe/雪.png",
    ]
    loaded.add(_file("a\udcfe", "4.png"))
    assert loaded != listing


def test_images_are_numbered_through_all_listings(tmp_path: Path) -> None:
    listings = [Listing(tmp_path / name) for name in ("one.tar", "none.tar", "two.tar")]
    for number in range(3):
        listings[0].add(_file("a", f"{number}.png"))
        listings[2].add(_file("b", f"{number}.png"))
    found = [(listing.source.name, name) for listing, name in located(listings, np.array([4, 2, 3]))]
    assert found == [("two.tar", "b/1.png"), ("one.tar", "a/2.png"), ("two.tar", "b/0.png")]


def test_a_hundred_thousand_names_and_their_index_take_a_few_megabytes(tmp_path: Path) -> None:
    suffixes()  # loads Pillow's plugins, so that their memory is not counted below
    tracemalloc.start()
    try:
        listings = [Listing(tmp_path / f"{part}.tar") for part in range(4)]
        for number in range(100_000):
            listings[number % 4].add(_file("train", f"class {number * 7919 % 100:03}", f"{number:08}.jpg"))
        index = index_of(listings, tmp_path)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(images) for images in index.images.values()] == [80_000, 20_000]
    assert current < 6e6
    assert peak < 9e6  # a dictionary with a tuple of strings per image would take several times as much
