"""A cache of image features in the user's cache folder. Missing features are computed.

A folder holds the features of one backbone, computed in one way. Each of its files holds the features of a few images.
An image is identified by the hash of its pixels. A file is complete and has a checksum, or it does not exist. If a
process is killed, the files that it has already written stay valid.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.core.cache import cache_folder, create_folder
from onecycle.core.errors import InputError, StorageError
from onecycle.core.files import writing
from onecycle.data.augment.views import Views, digest_of
from onecycle.storage.checkpoint import load_tensors, save_tensors

IMAGES_PER_FILE = 64
MOST_BYTES = 4 * 2**30  # limit for all folders together; folders in use may exceed it

Compute = Callable[[torch.Tensor], torch.Tensor]
"""Computes the features `[V,c,1,1]` of uint8 images `[V,S,S,3]`."""


class FeatureCache:
    """The features that `compute` gives for the views of images.

    `key` holds, as JSON values, everything that the features depend on, except the images and their views. The features
    of all views of an image are computed together, without other images. So the features of an image have the same bits
    in every data set, whether they are computed or read from the cache.
    """

    def __init__(self, compute: Compute, key: Mapping[str, Any]) -> None:
        self._compute = compute
        self._key = key

    def of(
        self,
        images: NDArray[np.uint8],
        views: Views,
        *,
        start: Callable[[int], object] = lambda missing: None,
        advance: Callable[[], object] = lambda: None,
    ) -> tuple[torch.Tensor, str | None]:
        """The features `[N,V,c,1,1]` of the `views` of `images`, uint8 `[N,S,S,3]`.

        `start` is called with the number of images whose features must be computed. `advance` is called after each
        of these images. The second returned value is None, or the reason why the cache could not be written. The
        features are returned in both cases.
        """
        folder = self._folder(views)
        digests = [digest_of(image) for image in images]
        with suppress(OSError):
            os.utime(folder)  # makes this folder the last to be removed
        found = _read(folder, set(digests))
        # If an image occurs several times, `first` has its first row.
        first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
        missing = sorted(row for digest, row in first.items() if digest not in found)
        if missing:
            start(len(missing))
        problem: str | None = None
        for place in range(0, len(missing), IMAGES_PER_FILE):
            computed: dict[bytes, torch.Tensor] = {}
            for row in missing[place : place + IMAGES_PER_FILE]:
                # Make the features contiguous, as those read from the cache are.
                computed[digests[row]] = self._compute(views.of(images[row])).contiguous()
                advance()
            found |= computed
            if problem is None:
                try:
                    _write(folder, computed)
                except StorageError as error:
                    problem = str(error)
        return torch.stack([found[digest] for digest in digests]), problem

    def _folder(self, views: Views) -> Path:
        key = json.dumps({**self._key, **views.to_json()}, sort_keys=True)
        return cache_folder() / "features" / hashlib.sha256(key.encode()).hexdigest()[:16]


def remove_oldest(*, kept: int) -> None:
    """Remove the least recently used folders of features, so that the rest has at most `MOST_BYTES` in all.

    `kept` is the number of most recently used folders that always stay, even if they have more than `MOST_BYTES`.
    """
    with suppress(OSError):  # another process may remove the same folders at the same time
        left = MOST_BYTES
        folders = [path for path in (cache_folder() / "features").iterdir() if path.is_dir()]
        newest_first = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
        for place, folder in enumerate(newest_first):
            size = sum(file.stat().st_size for file in folder.iterdir())
            if size <= left or place < kept:
                left -= size
            else:
                shutil.rmtree(folder)


def _read(folder: Path, wanted: set[bytes]) -> dict[bytes, torch.Tensor]:
    """Read from `folder` the features of the images whose digests are in `wanted`. Damaged files are removed."""
    found: dict[bytes, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found |= {digest: features.clone() for digest, features in _content(path) if digest in wanted}
        except InputError:
            with suppress(OSError):
                path.unlink()
    return found


def _content(path: Path) -> Iterator[tuple[bytes, torch.Tensor]]:
    tensors, _ = load_tensors(path)
    if tensors.keys() != {"digests", "features"} or len(tensors["digests"]) != len(tensors["features"]):
        raise InputError(f"{path} does not hold features")
    for digest, features in zip(tensors["digests"], tensors["features"], strict=True):
        yield digest.numpy().tobytes(), features


def _write(folder: Path, computed: Mapping[bytes, torch.Tensor]) -> None:
    with writing(folder):
        create_folder(folder)
    digests = torch.tensor([list(digest) for digest in computed], dtype=torch.uint8)  # [n,32]
    name = hashlib.sha256(b"".join(computed)).hexdigest()[:16]
    features = torch.stack(list(computed.values()))  # [n,V,c,1,1]
    save_tensors(folder / f"{name}.safetensors", {"digests": digests, "features": features}, {})
