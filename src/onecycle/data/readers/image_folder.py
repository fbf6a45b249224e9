"""Read your own images from a folder or an archive: `train/<class>/*` and `test/<class>/*`, or just `<class>/*`.

There may be a validation set, `val/<class>/*`, beside the test set or in its place. A table of labels, such as
`labels.csv`, may give the class and the split of each image instead. A folder that holds only archives
is read as the content of all these archives. If there is neither a test set nor a validation set, a test set is drawn
from the images. The same files always give the same test set.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.core.files import file_identity
from onecycle.data.image_files import has_image_suffix, suffixes
from onecycle.data.readers.entries import Entry, archives_in, entries_of, is_ignored, one_line_errors
from onecycle.data.readers.formats import FileNames, Format, ReadOptions
from onecycle.data.readers.label_file import FOUND_NAMES, NO_LABELS, LabelFile, find_labels
from onecycle.data.readers.left_out import LeftOut
from onecycle.data.readers.sets import Sets
from onecycle.data.store.cache import cached, look_up, unfinished_folder
from onecycle.data.store.decode import unusable
from onecycle.data.store.index import ALWAYS_SPLITS, Index, index_of
from onecycle.data.store.labeled import index_by_labels
from onecycle.data.store.listing import Listing, listing_of, located
from onecycle.data.store.mapped import portions, read_set, write_set
from onecycle.data.store.parallel_decode import DecodedSource, DecodeSource, decode

_CACHE_VERSION = 7  # increase it when decoding or the format of the cached files changes


class ImageFolder(Format):
    """Image files in class folders or with a table of labels. The files may be in one archive or in several."""

    name = "image files"
    example = "train/<class>/* and test/<class>/*, or <class>/*, or images with a labels.csv"
    joins_archives = True

    def find(self, files: FileNames) -> list[Path]:
        top = files.top
        with one_line_errors(top), os.scandir(top) as scan:
            visible = [item for item in scan if not is_ignored(item.name, is_folder=os.path.isdir(item.path))]
            # `item.is_dir()` would raise an error for a loop of links.
            folders = sorted((item for item in visible if os.path.isdir(item.path)), key=lambda item: item.name)
            around = [
                Path(item) for item in folders if any(os.path.isdir(f"{item.path}/{split}") for split in ALWAYS_SPLITS)
            ]
        # Other formats also have train/ and test/ folders, but with no images in them.
        if any(item.name in ALWAYS_SPLITS for item in folders):
            return [top] if any(entry.is_image for entry in entries_of(top)) else []
        if len(around) > 1 or len(around) == len(visible) == 1:
            return around
        # Archives are not opened here. `search` opens them if no format is found without them.
        has_classes = not archives_in(top) and any(_is_in_class(entry) for entry in entries_of(top))
        return [top] if has_classes or find_labels(top) else []

    def is_member(self, parts: tuple[str, ...]) -> bool:
        return (len(parts) > 1 and has_image_suffix(parts[-1])) or parts[-1].lower() in FOUND_NAMES

    def read(self, path: Path, options: ReadOptions) -> Sets:
        return read_image_folder(path, options.size, options.labels)


def _is_in_class(entry: Entry) -> bool:
    return len(entry.parts) > 1 and entry.is_image


def sources_of(source: Path) -> tuple[list[Path], LeftOut]:
    """The paths to read for `source`: its archives if it is a folder of archives, otherwise `source` itself.

    Also returns what is beside the archives.
    """
    archives, left_out = archives_in(source), LeftOut()
    if not archives:
        return [source], left_out
    names = {archive.name for archive in archives}
    for entry in entries_of(source):
        if entry.parts[-1] not in names:
            left_out.add_entry(entry)
    return archives, left_out


def indexed(listings: Sequence[Listing], source: Path, labels: LabelFile | None, *, is_given: bool) -> Index:
    """The split and class of each image of `listings`. The listings are the content of `source`.

    The splits and classes come from `labels`, or from the folders if `labels` is None. `is_given` says whether the user
    chose between labels and folders.

    Raises:
        InputError: when the folders or the labels are wrong. Also when the user did not choose, but labels and folders
            can both be read.
    """
    if labels is None:
        return index_of(listings, source)
    if not is_given:
        try:
            other = index_of(listings, source)
        except InputError:
            pass
        else:
            raise InputError(
                f"{source}: has two layouts, {other.layout} and labels in {labels.name}; use --labels {labels.inside} "
                f"to read these labels, or --labels {NO_LABELS} to read the folders"
            )
    return index_by_labels(listings, labels, source)


def read_image_folder(source: Path, input_size: int, labels: str | None = None) -> Sets:
    """Read the images of `source`: a folder, an archive or a folder of archives.

    The content may be inside extra nested folders. Images are uint8 `[N,input_size,input_size,3]`, ordered
    by class and file name, in memory-mapped files (copy on write). Classes are the sorted folder names. Images are
    decoded once, into the user's cache. Archives that were decoded before an interruption are not decoded again.

    `labels` is the path of a table of labels, as for `find_labels`.

    Raises:
        InputError: when the folder structure or the table of labels is wrong, or images cannot be used. The message
            lists the first few of these images.
        StorageError: when the cache cannot be written.
    """
    paths, beside = sources_of(source)
    is_single = paths == [source]
    compute_fingerprint = partial(_fingerprint, is_single=is_single)
    sources = [DecodeSource(path, compute_fingerprint(path), compute_fingerprint) for path in paths]
    # If `labels` is not given, an archive is searched for a table later, and only if nothing is cached. The
    # fingerprint of the archive covers this table.
    table = find_labels(source, labels, compare=False) if labels or source.is_dir() else None
    if table and table.inside and not is_single:
        beside.discount(table.inside)
    about_labels = (table.name, table.folder, table.digest) if table else (labels,)
    fingerprints = (known.fingerprint for known in sources)
    key = _key(input_size, beside.lines(), about_labels, *fingerprints)
    read = partial(_read, source)
    if found := look_up(key, read):
        return found
    # The folder is named after the path of `source`, not its content. If one archive changes after an interruption, the
    # next call therefore still finds the other archives decoded.
    unfinished_key = _key(input_size, os.fspath(source.resolve()))
    with unfinished_folder(unfinished_key, source, keep=not is_single) as unfinished:
        if table is None or not (table.inside or source.is_dir()):  # `find_labels` has not searched the archive
            found_again = find_labels(source, labels)
            if table and found_again and found_again.digest != table.digest:
                raise InputError(f"{table.name} changed while it was read; try again")
            table = found_again
        index = partial(indexed, source=source, labels=table, is_given=labels is not None)
        write = partial(_write, source, sources, beside, index, input_size, unfinished)
        return cached(key, write, read, within=unfinished)


def _key(*values: object) -> str:
    version = _CACHE_VERSION, sorted(suffixes())  # the installed packages decide which suffixes are read
    return hashlib.sha256(json.dumps([*version, *values]).encode()).hexdigest()[:32]


def _fingerprint(source: Path, is_single: bool) -> str:
    """A string that changes when `source` changes.

    For a single archive, it depends on the content. For a folder, or one archive of several, it depends on the paths
    and the `file_identity` of the files. For a folder, it also depends on the counts of the files that are left out,
    because these counts are cached with the images.
    """
    try:
        if source.is_dir():
            listing = listing_of(source)
            digest = hashlib.sha256(os.fsencode(source.resolve()))
            digest.update(json.dumps(listing.left_out.to_json()).encode())
            for _, name in located([listing], np.arange(len(listing))):
                digest.update(json.dumps([name, *file_identity(source / name)]).encode())
            return digest.hexdigest()
        if is_single:
            with source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return json.dumps([os.fspath(source.resolve()), *file_identity(source)])
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); check it") from error


def _write(
    source: Path,
    sources: Sequence[DecodeSource],
    beside: LeftOut,
    index_of_listings: Callable[[Sequence[Listing]], Index],
    size: int,
    unfinished: Path,
    folder: Path,
) -> None:
    """Decode `sources` into files in `unfinished`. Then write the sets into `folder`.

    `sources` are the archives in `source`, or only `source` itself.
    """
    if len(sources) == 1:
        # Listing names is fast, so report a wrong structure before decoding.
        index_of_listings([listing_of(sources[0].path)])
    decoded_sources = decode(sources, size, unfinished)
    listings = [decoded.listing for decoded in decoded_sources]
    index = index_of_listings(listings)
    _require_usable(decoded_sources, index, source)
    names = [name for _, name in located(listings, index.images["test"])] if index.is_drawn else None
    about = {
        "splits": list(index.images),
        "layout": index.layout,
        "drawn": names,
        "left_out": [*beside.lines(), *index.left_out.lines()],
    }
    (folder / "about.json").write_text(json.dumps(about))
    for split in index.images:
        shape = (len(index.labels[split]), size, size, 3)
        write_set(
            folder,
            split,
            _gathered(decoded_sources, index.images[split]),
            shape,
            index.labels[split],
            index.classes,
            _names(listings, index.images[split]),
        )


def _names(listings: Sequence[Listing], images: NDArray[np.int64]) -> Iterator[str]:
    """Yield the names of `images`. If there are several archives, each name has the form `ARCHIVE:PATH`."""
    for listing, path in located(listings, images):
        yield f"{listing.source.name}:{path}" if len(listings) > 1 else path


def _require_usable(decoded_sources: Sequence[DecodedSource], index: Index, source: Path) -> None:
    first, problems = 0, []
    used = np.zeros(sum(len(decoded.listing) for decoded in decoded_sources), bool)
    for images in index.images.values():
        used[images] = True
    for decoded in decoded_sources:
        problems += [problem for image, problem in decoded.problems.items() if used[first + image]]
        first += len(decoded.listing)
    if problems:
        raise unusable(source, problems, int(used.sum()))


def _gathered(decoded_sources: Sequence[DecodedSource], images: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of `images`, a few megabytes at a time. Images are numbered consecutively across all sources."""
    ends = np.cumsum([len(decoded.listing) for decoded in decoded_sources])
    for portion in portions(len(images), math.prod(decoded_sources[0].images.shape[1:])):
        numbers = images[portion]
        pixels = np.empty((len(numbers), *decoded_sources[0].images.shape[1:]), np.uint8)
        of_part = np.searchsorted(ends, numbers, side="right")
        for which in np.unique(of_part):
            decoded, rows = decoded_sources[which], of_part == which
            pixels[rows] = decoded.images[numbers[rows] - (ends[which] - len(decoded.listing))]
        yield pixels


def _read(source: Path, folder: Path) -> Sets:
    about = json.loads((folder / "about.json").read_text())
    sets = {split: read_set(folder, split) for split in about["splits"]}
    return Sets(
        source=source_in_words(source, about["layout"]),
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets.get("test"),
        left_out=tuple(about["left_out"]),
        drawn=None if about["drawn"] is None else tuple(about["drawn"]),
    )


def source_in_words(source: Path, layout: str) -> str:
    """A phrase that says what `source` is. `layout` is its layout, as in `Index`."""
    kind = (
        "image archive"
        if not source.is_dir()
        else "folder of image archives"
        if archives_in(source)
        else "image folder"
    )
    return f"{kind} {source} with {layout}"
