"""One's own images, in a folder or an archive: `train/<class>/*` and `test/<class>/*`, or just `<class>/*`.

A folder that holds only archives stands for all that is in them. Where there is no test set one is drawn: the same from
the same files, whatever else differs.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from onecycle.core.errors import InputError
from onecycle.core.files import taking_turns
from onecycle.core.signals import Interrupted
from onecycle.data.readers.entries import archives_in
from onecycle.data.readers.image_set import ImageSet
from onecycle.data.store.cache import cached, images_folder, look_up, writing_cache
from onecycle.data.store.folder_index import SPLITS, Index, index_of
from onecycle.data.store.listing import listing_of, located
from onecycle.data.store.parts import Part, Source, decode
from onecycle.data.store.stored import portions, read_set, write_set

PROBLEMS_TOLD = 5  # in a message
_CACHE_VERSION = 3  # raised when decoding or the cached files change


class FolderSets(NamedTuple):
    """What is in an image folder; `drawn` names the test images, where the test set was drawn."""

    train: ImageSet
    test: ImageSet
    drawn: tuple[str, ...] | None


def sources_of(source: Path) -> list[Path]:
    """What `source`, an image folder, is read from: the archives in a folder that holds nothing else, or itself."""
    return archives_in(source) or [source]


def read_image_folder(source: Path, input_size: int) -> FolderSets:
    """The training and the test set of `source`: a folder, an archive or a folder of archives.

    There may be one folder around those of the sets. Images are uint8 `[N,input_size,input_size,3]`, ordered by class
    and file name, in files mapped into memory (copy on write); classes are the folders' names, sorted. They are decoded
    once, into the user's cache; of several archives, those that were decoded before an interruption are not again.

    Raises:
        InputError: the folders are not as they must be, or there are images that cannot be used; the message names
            them, or the first few.
    """
    alone = not archives_in(source)
    identify = partial(_identity, alone=alone)
    sources = [Source(path, identify(path), identify) for path in sources_of(source)]
    key = _key(_CACHE_VERSION, input_size, *(known.identity for known in sources))
    if found := look_up(key, _read):
        return found
    # Known by its place, so that of several archives one may change, and the parts of the others still be there.
    unfinished = images_folder() / f"unfinished-{_key(_CACHE_VERSION, input_size, os.fspath(source.resolve()))}"
    waits = partial(_say, f"{source} is being read by another process; waiting for it")
    with writing_cache():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with taking_turns(unfinished.with_suffix(".lock"), waits), _removed(unfinished, keep=not alone):
            for left in unfinished.glob("partial-*"):  # by a process that was killed
                shutil.rmtree(left)
            return cached(key, partial(_write, source, sources, input_size, unfinished), _read, within=unfinished)


def _say(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def _key(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _identity(source: Path, alone: bool) -> str:
    """What `source` is known by: an archive by its content, or, where it is not alone, as the files of a folder are."""
    try:
        if source.is_dir():
            listing = listing_of(source)
            digest = hashlib.sha256(os.fsencode(source.resolve()))
            for _, name in located([listing], np.arange(len(listing))):
                stat = os.stat(source / name)
                digest.update(json.dumps([name, stat.st_size, stat.st_mtime_ns]).encode())
            return digest.hexdigest()
        if alone:
            with source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        stat = source.stat()
        return json.dumps([os.fspath(source.resolve()), stat.st_size, stat.st_mtime_ns])
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); check it") from error


@contextmanager
def _removed(folder: Path, *, keep: bool) -> Iterator[None]:
    """Removes `folder` in the end; after a failure only if it is not to be kept, or there is nothing in it."""
    folder.mkdir(exist_ok=True)  # another process may have removed it
    try:
        yield
    except BaseException as failure:
        if keep:
            with suppress(OSError):
                folder.rmdir()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(failure, Interrupted) and folder.exists():
            raise Interrupted(failure.number, "the same command goes on with the archives that are left") from None
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _write(source: Path, sources: Sequence[Source], size: int, unfinished: Path, folder: Path) -> None:
    """Fill `folder` with both sets of `source`, which is read from `sources`; `unfinished` is for their parts."""
    if len(sources) == 1:
        index_of([listing_of(sources[0].path)], source)  # names are read soon: what is wrong with them is told at once
    parts = decode(sources, size, unfinished)
    listings = [part.listing for part in parts]
    index = index_of(listings, source)
    _require_usable(parts, index, source)
    names = [name for _, name in located(listings, index.images["test"])] if index.is_drawn else None
    (folder / "drawn.json").write_text(json.dumps(names))
    for split in SPLITS:
        shape = (len(index.labels[split]), size, size, 3)
        write_set(folder, split, _gathered(parts, index.images[split]), shape, index.labels[split], index.classes)


def _require_usable(parts: Sequence[Part], index: Index, source: Path) -> None:
    first, problems = 0, []
    used = np.zeros(sum(len(part.listing) for part in parts), bool)
    for images in index.images.values():
        used[images] = True
    for part in parts:
        problems += [problem for image, problem in part.problems.items() if used[first + image]]
        first += len(part.listing)
    if problems:
        more = f", and {len(problems) - PROBLEMS_TOLD} more" if len(problems) > PROBLEMS_TOLD else ""
        raise InputError(
            f"{source}: {len(problems)} of {used.sum():,} images cannot be used: "
            f"{' '.join(problems[:PROBLEMS_TOLD])}{more}. `onecycle check {source}` lists all"
        )


def _gathered(parts: Sequence[Part], images: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of these `images`, numbered through all parts, a few at a time."""
    ends = np.cumsum([len(part.listing) for part in parts])
    for portion in portions(len(images), math.prod(parts[0].images.shape[1:])):
        numbers = images[portion]
        pixels = np.empty((len(numbers), *parts[0].images.shape[1:]), np.uint8)
        of_part = np.searchsorted(ends, numbers, side="right")
        for which in np.unique(of_part):
            part, rows = parts[which], of_part == which
            pixels[rows] = part.images[numbers[rows] - (ends[which] - len(part.listing))]
        yield pixels


def _read(folder: Path) -> FolderSets:
    drawn = json.loads((folder / "drawn.json").read_text())
    train, test = (read_set(folder, split) for split in SPLITS)
    return FolderSets(train, test, None if drawn is None else tuple(drawn))
