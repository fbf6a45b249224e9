"""The names of all images in a folder or an archive, stored compactly: a million names take about 30 MB."""

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onecycle.core.files import printable
from onecycle.data.readers.entries import Entry, entries_of
from onecycle.data.readers.left_out import LeftOut

Parts = tuple[str, ...]

_ENCODING = "utf-8", "surrogatepass"  # a file name is not always valid Unicode


class Listing:
    """All folders of `source`, and all images in the order of reading. An image has a folder number and a file name.

    `left_out` counts the files that are not images.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._top = f"{source}{'/' if source.is_dir() else ':'}"
        self.folders: dict[Parts, int] = {}  # maps each folder to its folder number (0-based)
        self.folder_of = array("i")  # the folder number of each image
        self._names = bytearray()  # all file names, concatenated
        self._ends = array("q")
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, entry: Entry) -> bool:
        """Add `entry` and its folder. Returns whether `entry` is an image.

        A file that is not an image is counted in `left_out`.
        """
        folder = self.folders.setdefault(entry.parts if entry.is_folder else entry.parts[:-1], len(self.folders))
        if is_image := entry.is_image:
            self.folder_of.append(folder)
            self._names += entry.parts[-1].encode(*_ENCODING)
            self._ends.append(len(self._names))
        else:
            self.left_out.add_entry(entry)
        return is_image

    def name(self, image: int) -> str:
        """The file name of the image with this number."""
        start = self._ends[image - 1] if image else 0
        return self._names[start : self._ends[image]].decode(*_ENCODING)

    def where(self, path: str) -> str:
        """The full name of the image at `path`, for messages."""
        return printable(self._top + path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listing) and all(
            mine == theirs
            for mine, theirs in (
                (list(self.folders), list(other.folders)),
                (self.folder_of, other.folder_of),
                (self._names, other._names),
                (self._ends, other._ends),
                (self.left_out, other.left_out),
            )
        )

    def save(self, folder: Path) -> None:
        """Write the listing into `folder`. The path of the source is not written."""
        (folder / "folders.json").write_text(json.dumps(list(self.folders)))
        (folder / "left_out.json").write_text(json.dumps(self.left_out.to_json()))
        for name, values in (("folder_of", self.folder_of), ("names", self._names), ("ends", self._ends)):
            (folder / name).write_bytes(values)

    @classmethod
    def load(cls, folder: Path, source: Path) -> Self:
        """The listing of `source` that was saved in `folder`."""
        listing = cls(source)
        folders = json.loads((folder / "folders.json").read_text())
        listing.folders = {tuple(parts): number for number, parts in enumerate(folders)}
        listing.folder_of.frombytes((folder / "folder_of").read_bytes())
        listing._names += (folder / "names").read_bytes()
        listing._ends.frombytes((folder / "ends").read_bytes())
        listing.left_out = LeftOut.from_json(json.loads((folder / "left_out.json").read_text()))
        return listing


def listing_of(source: Path) -> Listing:
    """The listing of the folder or archive `source`.

    Raises:
        InputError: when `entries_of` cannot read `source`.
    """
    listing = Listing(source)
    for entry in entries_of(source):
        listing.add(entry)
    return listing


def located(listings: Sequence[Listing], images: NDArray[np.int64]) -> Iterator[tuple[Listing, str]]:
    """Yield the listing and the path of each of `images`. Images are numbered consecutively across all `listings`."""
    ends = np.cumsum([len(listing) for listing in listings])
    folders = [["".join(f"{part}/" for part in folder) for folder in listing.folders] for listing in listings]
    for image, which in zip(images.tolist(), np.searchsorted(ends, images, side="right").tolist(), strict=True):
        listing = listings[which]
        own = image - int(ends[which]) + len(listing)
        yield listing, f"{folders[which][listing.folder_of[own]]}{listing.name(own)}"
