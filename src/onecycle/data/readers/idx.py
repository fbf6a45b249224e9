"""Read the IDX files of MNIST and of data sets in the same form. The files may be compressed by gzip.

Source: LeCun, Cortes & Burges 1998, "The MNIST database of handwritten digits"; http://yann.lecun.com/exdb/mnist/
"""

import gzip
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from onecycle.core.errors import InputError
from onecycle.data.readers.archive_members import too_large
from onecycle.data.readers.download import RemoteFile, matches
from onecycle.data.readers.entries import is_ignored, most_bytes, one_line_errors
from onecycle.data.readers.formats import FileNames, ReadOptions, RowFormat
from onecycle.data.readers.left_out import OTHER, LeftOut
from onecycle.data.readers.named import NamedSet
from onecycle.data.readers.sets import Sets
from onecycle.data.readers.stored_arrays import LabeledArray, StoredArray, array_sets
from onecycle.data.store.rows import RowSets, read_rows

# For example train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte or emnist-letters-test-images-idx3-ubyte.
_FILE = re.compile(
    r"(?P<set>.*?)[-_.]?(?P<split>train|t10k|test|val|validation)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?", re.I
)
_SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "validation", "validation": "validation"}
_BYTES = 0x08  # the third byte of a file gives the type of its values; this type is uint8
_DIMENSIONS = {"images": 3, "labels": 1}


@dataclass(frozen=True, kw_only=True)
class KnownFiles:
    """The official files of a data set, the folders in which tools keep them, and the names of its classes."""

    name: str
    title: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]
    classes: tuple[str, ...]

    def find(self, folder: Path) -> Path | None:
        """Look in `folder`, such as ./data, for a folder with all files of the data set, compressed or not."""
        places = (folder / name for name in self.folders)
        return next((place for place in places if all(_has(place, file.name) for file in self.files)), None)

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` has all files as they were published."""
        return all(_has(folder, file.name, "") and matches(folder / file.name, file) for file in self.files)

    def read(self, path: Path, options: ReadOptions) -> Sets:
        return read_rows(idx_rows(path, self), options.size)


def _has(folder: Path, name: str, *endings: str) -> bool:
    return any(os.path.isfile(folder / name.removesuffix(ending)) for ending in endings or ("", ".gz"))


def _official(url: str, *files: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(url=f"{url}/{name}-ubyte.gz", size=size, sha256=sha256) for name, size, sha256 in files)


# The addresses, sizes and checksums are those of TensorFlow Datasets. The site of MNIST's authors no longer has the
# files. The site of Fashion-MNIST has no https, but the checksums reveal a changed file.
MNIST = KnownFiles(
    name="mnist",
    title="MNIST",
    files=_official(
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    folders=("mnist", "MNIST/raw"),
    classes=tuple("0123456789"),
)
FASHION_MNIST = KnownFiles(
    name="fashion-mnist",
    title="Fashion-MNIST",
    files=_official(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ("train-images-idx3", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    folders=("fashion-mnist", "FashionMNIST/raw"),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)
KNOWN = (MNIST, FASHION_MNIST)
NAMED = tuple(
    NamedSet(
        name=known.name,
        title=known.title,
        files=known.files,
        find=known.find,
        read=known.read,
        folder=known.name,
    )
    for known in KNOWN
)


class Idx(RowFormat):
    """IDX files: for each split, one file with images and one with labels."""

    name = "IDX files"
    example = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"

    def find(self, files: FileNames) -> list[Path]:
        return list(files.folders(_is_idx))

    def is_file(self, name: str, start: bytes) -> bool:
        return _is_idx(name)

    def rows(self, path: Path, options: ReadOptions) -> RowSets:
        if not path.is_dir():
            raise InputError(f"{path}: this is one of the IDX files of a data set; give their folder, {path.parent}")
        return idx_rows(path)


def _is_idx(name: str) -> bool:
    return bool(_FILE.fullmatch(name))


def idx_rows(folder: Path, known: KnownFiles | None = None) -> RowSets:
    """The data set in `folder`. `known` is the expected data set. If `known` is None, any data set is accepted.

    Raises:
        InputError: when a file is missing or damaged, or the folder has files of several data sets.
    """
    files, left_out = _files_in(folder)
    official = next((each for each in KNOWN if each.is_in(folder)), None)
    notes = []
    if known and official is not known:
        notes.append(f"Unverified: {folder} does not have the official files of {known.title} with their checksums")
    known = known or official
    splits: Sequence[str] = ("train", "validation", "test")
    arrays = {split: _labeled(folder, files, split) for split in splits if split in files}
    if "train" not in arrays:
        raise InputError(f"{folder}: has no training images (train-images-idx3-ubyte); add them")
    title = f"{known.title}, IDX files" if known else "IDX files"
    return array_sets(
        folder,
        arrays,
        source=f"{title} from {folder}",
        files=[file for of_split in files.values() for file in of_split.values()],
        class_names=known.classes if known else None,
        name=known.name if known else None,
        notes=notes,
        left_out=left_out,
    )


def _files_in(folder: Path) -> tuple[dict[str, dict[str, Path]], LeftOut]:
    """For each split, the paths of its "images" and "labels" in `folder`. Also returns the files that are left out."""
    left_out, found, sets = LeftOut(), defaultdict[str, dict[str, Path]](dict), set()
    with one_line_errors(folder):
        names = sorted((item.name for item in os.scandir(folder) if item.is_file()), reverse=True)
    for name in names:  # NAME.gz comes before NAME and is preferred, because its checksum may be official
        if not (match := _FILE.fullmatch(name)):
            if not is_ignored(name, is_folder=False):
                left_out.add(OTHER, name)
            continue
        sets.add(match["set"])
        of_split, what = found[_SPLITS[match["split"].lower()]], match["what"].lower()
        if what in of_split:
            left_out.add("file with a compressed copy", name)
        else:
            of_split[what] = folder / name
    if len(sets) > 1:
        raise InputError(
            f"{folder}: holds IDX files of several data sets ({', '.join(sorted(repr(name) for name in sets))}); "
            "move each data set into a folder of its own"
        )
    return found, left_out


def _labeled(folder: Path, files: Mapping[str, Mapping[str, Path]], split: str) -> LabeledArray:
    for what in _DIMENSIONS:
        if what not in files[split]:
            other = next(iter(files[split].values())).name
            raise InputError(f"{folder}: {other} is there, but not the {what} of {split}; add the file")
    images, labels = (_stored(files[split][what], what) for what in _DIMENSIONS)
    with one_line_errors(labels.path):
        content = np.concatenate([np.empty(0, np.uint8), *labels.values()])
    return LabeledArray(images, content, labels.name)


def _stored(path: Path, what: str) -> StoredArray:
    """The array in the IDX file `path`, after checking its header."""
    dimensions = _DIMENSIONS[what]
    with one_line_errors(path), _opened(path) as file:
        header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, _BYTES, dimensions)):
        raise InputError(
            f"{path}: not an IDX file with {what}: it starts with {header[:4].hex(' ') or 'nothing'}, not "
            f"00 00 08 0{dimensions}; get it again"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if math.prod(shape) > (most := most_bytes(path)):
        raise too_large(path, most)
    return StoredArray(path, path.name, shape, partial(_opened, path, len(header)))


@contextmanager
def _opened(path: Path, start: int = 0) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The content of `path` from byte `start` on. If the file is compressed, the content is unpacked."""
    with path.open("rb") as raw:
        is_compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if is_compressed else raw as file:
            file.read(start)
            yield file
