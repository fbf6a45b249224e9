"""Read CIFAR-10 in its two official formats.

Source: Alex Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from functools import partial
from pathlib import Path

from onecycle.data.readers.cifar_files import (
    Layout,
    binary_batch,
    find_official,
    pickled_batch,
    pickled_names,
    read_cifar,
    text_names,
)
from onecycle.data.readers.download import RemoteFile
from onecycle.data.readers.formats import FileNames, Format, ReadOptions
from onecycle.data.readers.named import NamedSet
from onecycle.data.readers.sets import Sets

BINARY = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
PYTHON = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    size=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
OFFICIAL_NAMES = (BINARY.name, PYTHON.name, "cifar-10-batches-bin", "cifar-10-batches-py")
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LAYOUTS = (
    Layout(
        version="binary",
        meta="batches.meta.txt",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        names=text_names,
        batch=binary_batch,
    ),
    Layout(
        version="python",
        meta="batches.meta",
        train=_BATCHES,
        test="test_batch",
        names=partial(pickled_names, key="label_names"),
        batch=pickled_batch,
    ),
)
_FILES = {name for layout in _LAYOUTS for name in layout.files}


class Cifar10(Format):
    """CIFAR-10, as an official archive or unpacked."""

    name = "CIFAR-10"
    example = ", ".join(OFFICIAL_NAMES)

    def find(self, files: FileNames) -> list[Path]:
        return list(filter(None, [find_cifar10(files.top)]))

    def is_member(self, parts: tuple[str, ...]) -> bool:
        return parts[-1] in _FILES

    def read(self, path: Path, options: ReadOptions) -> Sets:
        return read_cifar(path, _LAYOUTS, title=self.name, name="cifar10", official=(BINARY, PYTHON))


def find_cifar10(folder: Path) -> Path | None:
    """Find CIFAR-10 in `folder`, unpacked or under an official name. Returns the path, as `find_official` does."""
    return find_official(folder, OFFICIAL_NAMES, lambda place: any(os.path.isfile(place / name) for name in _FILES))


NAMED = NamedSet(name="cifar10", title=Cifar10.name, files=(BINARY,), find=find_cifar10, read=Cifar10().read)
