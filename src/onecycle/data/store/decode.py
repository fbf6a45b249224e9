"""Decode thousands of image files in order, a few at a time, with several threads where they help."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.image_files import open_image, to_square

_CHUNK = 64  # files to read ahead, so that the thread pool stays busy
_CHUNK_BYTES = 2**26  # reading ahead stops when the files reach this size
_LARGE_BYTES = 50_000
_IDLE_SECONDS = 0.2  # after an error or a signal, wait at most this long for idle threads to end
_LISTED = 5  # an error message lists at most this many problems
_POLL_SECONDS = 1.0  # longest delay of a signal that arrives just before this process waits
MOST_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of an image that cannot be used."""

    reason: str


class Encoded(Protocol):
    """The content of an image file, not decoded yet."""

    @property
    def content(self) -> bytes | NDArray[np.uint8] | Unreadable:
        """The bytes of an image file, or the pixels of an image, `[H,W]` or `[H,W,3]`."""
        ...

    @property
    def where(self) -> str:
        """The name that messages use for the file."""
        ...


E_co = TypeVar("E_co", bound=Encoded)
T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


def each_decoded(
    files: Iterator[E_co], decode: Callable[[E_co], T], *, threads: int = MOST_THREADS
) -> Iterator[tuple[E_co, T]]:
    """Yield each of `files` with the result of `decode`, in order. Only a few files are in memory at a time.

    The calling thread does not decode: a signal interrupts it at once, even if an image takes long.
    """

    def decode_part(part: Sequence[E_co]) -> list[T]:
        return [decode(file) for file in part]

    with _daemon_threads(decode_part, threads) as submit:
        while chunk := _chunk(files):
            # Small files are faster in one thread.
            is_large = _size(chunk) > len(chunk) * _LARGE_BYTES
            submitted = [submit(part) for part in ([[file] for file in chunk] if is_large else [chunk])]
            results = itertools.chain.from_iterable(map(_wait_for, submitted))
            yield from zip(chunk, results, strict=True)


def _wait_for(future: Future[T]) -> T:
    """The result of `future`. If a signal arrives just before the wait, it is handled within a second."""
    while not future.done():
        futures.wait([future], timeout=_POLL_SECONDS)
    return future.result()


@contextmanager
def _daemon_threads(function: Callable[[A], R], count: int) -> Iterator[Callable[[A], Future[R]]]:
    """Yield a function that lets one of `count` threads call `function`.

    An error or a signal does not stop a call that has begun. But the process can end without waiting for that call.
    With the threads of `ThreadPoolExecutor`, the process would have to wait.
    """
    tasks: SimpleQueue[tuple[A, Future[R]] | None] = SimpleQueue()
    is_stopped = False

    def work() -> None:
        while (task := tasks.get()) and not is_stopped:
            argument, future = task
            try:
                future.set_result(function(argument))
            except BaseException as error:
                future.set_exception(error)

    def submit(argument: A) -> Future[R]:
        future: Future[R] = Future()
        tasks.put((argument, future))
        return future

    threads = [Thread(target=work, name="decoder", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield submit
    except BaseException:
        is_stopped = True
        raise
    finally:
        for _ in threads:
            tasks.put(None)
        # Idle threads must end now. If one woke up while Python shuts down, the process might hang.
        deadline = time.monotonic() + _IDLE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()) if is_stopped else None)


def open_encoded(file: Encoded) -> Image.Image:
    """The image in `file`.

    Raises:
        InputError: when the image cannot be used.
    """
    if isinstance(file.content, Unreadable):
        raise InputError(file.content.reason)
    if isinstance(file.content, np.ndarray):
        return Image.fromarray(file.content)
    return open_image(file.content, file.where)


def decode_square(file: Encoded, size: int) -> NDArray[np.uint8] | Unreadable:
    """The image in `file` as uint8 `[size,size,3]`, or why the image cannot be used."""
    try:
        return to_square(open_encoded(file), size, file.where)
    except InputError as error:
        return Unreadable(str(error))


def unusable(source: Path, problems: Sequence[str], images: int) -> InputError:
    """The error to raise when some images of the data set `source` cannot be used.

    `problems` has a message for each of these images. `images` is the number of images in the data set.
    """
    more = f", and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return InputError(
        f"{source}: {len(problems)} of {images:,} images cannot be used: {'; '.join(problems[:_LISTED])}{more}; "
        f"`onecycle check {source}` lists all of them"
    )


def _chunk(files: Iterator[E_co]) -> list[E_co]:
    chunk: list[E_co] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK or _size(chunk) > _CHUNK_BYTES:
            break
    return chunk


def _size(chunk: Sequence[Encoded]) -> int:
    """The number of bytes that the contents of `chunk` occupy."""
    contents = (file.content for file in chunk if not isinstance(file.content, Unreadable))
    return sum(content.nbytes if isinstance(content, np.ndarray) else len(content) for content in contents)
