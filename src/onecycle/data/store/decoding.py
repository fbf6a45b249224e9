"""Decoding picture files by the thousand: in order, a few at a time, on as many cores as it helps."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.preprocessing import open_picture, to_square

_CHUNK = 64  # files read ahead, to keep a pool busy
_CHUNK_BYTES = 2**26  # at which no more are
_LARGE_BYTES = 50_000
MOST_THREADS = min(8, os.cpu_count() or 1)


class Encoded(Protocol):
    """A file that was read, or why it could not be."""

    @property
    def content(self) -> bytes | InputError: ...

    @property
    def where(self) -> str:
        """What messages call it."""
        ...


E_co = TypeVar("E_co", bound=Encoded)
T = TypeVar("T")


def each_decoded(
    files: Iterator[E_co], decode: Callable[[E_co], T], *, threads: int = MOST_THREADS
) -> Iterator[tuple[E_co, T]]:
    """Every one of `files` with what `decode` makes of it, in their order; never more than a few are in memory."""
    with ThreadPoolExecutor(threads) as pool:
        while chunk := _chunk(files):
            # Threads take turns on small files and are slower there than one after the other.
            is_large = _size(chunk) > len(chunk) * _LARGE_BYTES
            results = (pool.map if is_large else map)(decode, chunk)
            yield from zip(chunk, results, strict=True)


def open_encoded(file: Encoded) -> Image.Image:
    """The picture in it.

    Raises:
        InputError: when there is none that can be used.
    """
    if isinstance(file.content, InputError):
        raise file.content
    return open_picture(file.content, file.where)


def square_of(file: Encoded, size: int) -> NDArray[np.uint8] | InputError:
    """The picture in it as uint8 `[size,size,3]`, or why there is none that can be used."""
    try:
        return to_square(open_encoded(file), size)
    except InputError as error:
        return error


def _chunk(files: Iterator[E_co]) -> list[E_co]:
    chunk: list[E_co] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK or _size(chunk) > _CHUNK_BYTES:
            break
    return chunk


def _size(chunk: Sequence[Encoded]) -> int:
    return sum(len(file.content) for file in chunk if isinstance(file.content, bytes))
