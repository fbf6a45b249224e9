"""Decode thousands of image files in order, a few at a time, with threads where they help."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.preprocessing import open_image, to_square

_CHUNK = 64  # files to read ahead, so that the thread pool stays busy
_CHUNK_BYTES = 2**26  # reading ahead stops when the files reach this size
_LARGE_BYTES = 50_000
MOST_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of an image that cannot be used."""

    reason: str


class Encoded(Protocol):
    """The content of an image file, not decoded yet."""

    @property
    def content(self) -> bytes | Unreadable: ...

    @property
    def where(self) -> str:
        """The name that messages use for the file."""
        ...


E_co = TypeVar("E_co", bound=Encoded)
T = TypeVar("T")


def each_decoded(
    files: Iterator[E_co], decode: Callable[[E_co], T], *, threads: int = MOST_THREADS
) -> Iterator[tuple[E_co, T]]:
    """Yield each of `files` with the result of `decode`, in order. Only a few files are in memory at a time."""
    with ThreadPoolExecutor(threads) as pool:
        while chunk := _chunk(files):
            # Small files are faster without threads.
            is_large = _size(chunk) > len(chunk) * _LARGE_BYTES
            results = (pool.map if is_large else map)(decode, chunk)
            yield from zip(chunk, results, strict=True)


def open_encoded(file: Encoded) -> Image.Image:
    """The image in `file`.

    Raises:
        InputError: when the image cannot be used.
    """
    if isinstance(file.content, Unreadable):
        raise InputError(file.content.reason)
    return open_image(file.content, file.where)


def decode_square(file: Encoded, size: int) -> NDArray[np.uint8] | Unreadable:
    """The image in `file` as uint8 `[size,size,3]`, or why the image cannot be used."""
    try:
        return to_square(open_encoded(file), size)
    except InputError as error:
        return Unreadable(str(error))


def _chunk(files: Iterator[E_co]) -> list[E_co]:
    chunk: list[E_co] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK or _size(chunk) > _CHUNK_BYTES:
            break
    return chunk


def _size(chunk: Sequence[Encoded]) -> int:
    return sum(len(file.content) for file in chunk if isinstance(file.content, bytes))
