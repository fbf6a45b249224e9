"""Read CIFAR-100 in its two official formats, with its 100 fine classes or its 20 coarse classes.

Source: Alex Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from dataclasses import replace
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

# The sizes and checksums are those of TensorFlow Datasets (binary) and of Keras (python).
BINARY = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
PYTHON = RemoteFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    size=169_001_437,
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
OFFICIAL_NAMES = (BINARY.name, PYTHON.name, "cifar-100-binary", "cifar-100-python")
_KINDS = ("coarse", "fine")  # in the order of their bytes in a binary record


def _layouts(kind: str) -> tuple[Layout, ...]:
    return (
        Layout(
            version="binary",
            meta=f"{kind}_label_names.txt",
            train=("train.bin",),
            test="test.bin",
            names=text_names,
            batch=partial(binary_batch, label=_KINDS.index(kind), labels=len(_KINDS)),
        ),
        Layout(
            version="python",
            meta="meta",
            train=("train",),
            test="test",
            names=partial(pickled_names, key=f"{kind}_label_names"),
            batch=partial(pickled_batch, key=f"{kind}_labels"),
        ),
    )


_BINARY_FILES = {name for kind in _KINDS for name in _layouts(kind)[0].files}
_PYTHON_FILES = ("meta", "train", "test")  # all must be files: other data sets have folders of these names


class Cifar100(Format):
    """CIFAR-100, as an official archive or unpacked."""

    name = "CIFAR-100"
    example = ", ".join(OFFICIAL_NAMES)
    has_coarse = True

    def find(self, files: FileNames) -> list[Path]:
        return list(filter(None, [find_cifar100(files.top)]))

    def is_member(self, parts: tuple[str, ...]) -> bool:
        return parts[-1] in _BINARY_FILES or (parts[0] == "cifar-100-python" and parts[1:] in (("train",), ("test",)))

    def read(self, path: Path, options: ReadOptions) -> Sets:
        layouts = _layouts("coarse" if options.coarse else "fine")
        sets = read_cifar(path, layouts, title=self.name, name="cifar100", official=(BINARY, PYTHON))
        return replace(sets, source=f"{sets.source}, coarse classes") if options.coarse else sets


def find_cifar100(folder: Path) -> Path | None:
    """Find CIFAR-100 in `folder`, unpacked or under an official name. Returns the path, as `find_official` does."""
    return find_official(folder, OFFICIAL_NAMES, _is_unpacked)


def _is_unpacked(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in _BINARY_FILES) or all(
        os.path.isfile(folder / name) for name in _PYTHON_FILES
    )


NAMED = NamedSet(
    name="cifar100",
    title=Cifar100.name,
    files=(BINARY,),
    find=find_cifar100,
    read=Cifar100().read,
    has_coarse=True,
)
