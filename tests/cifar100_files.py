"""CIFAR-100 in the layout of its official python archive, with other images."""

import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FINE = [f"fine {number}" for number in range(100)]
COARSE = [f"coarse {number}" for number in range(20)]


def write_python(
    folder: Path,
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    fine: Sequence[str] = FINE,
    coarse: Sequence[str] = COARSE,
) -> Path:
    """Write pickles of protocol 2 with the keys and values of Python 2. The coarse label is a fifth of the fine one."""
    folder.mkdir(parents=True)
    names = {b"fine_label_names": [n.encode() for n in fine], b"coarse_label_names": [n.encode() for n in coarse]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    for split, of_split in labels.items():
        values = {
            b"filenames": [f"{number}.png".encode() for number in range(len(of_split))],
            b"batch_label": f"{split} batch 1 of 1".encode(),
            b"fine_labels": of_split.tolist(),
            b"coarse_labels": (of_split // 5).tolist(),
            b"data": planes(images[split]),
        }
        (folder / split).write_bytes(pickle.dumps(values, protocol=2))
    (folder / "file.txt~").touch()
    return folder


def planes(images: np.ndarray) -> np.ndarray:
    """Images, uint8 `[N,32,32,3]`, as the rows of a file: `[N,3072]`, plane by plane."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def archived(folder: Path) -> Path:
    """Pack `folder` as the official archives are."""
    path = folder.parent / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path
