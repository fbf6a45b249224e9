"""The cache of decoded images."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from onecycle.core.cache import cache_folder, create_folder
from onecycle.core.errors import StorageError
from onecycle.core.files import DAMAGE_ERRORS, flush, waiting_for_lock
from onecycle.core.signals import Interrupted

T = TypeVar("T")

_ABANDONED_SECONDS = 7 * 24 * 3600  # no process writes to a temporary folder for longer than this


def images_folder() -> Path:
    """The folder of decoded images in the user's cache."""
    return cache_folder() / "images"


def look_up(key: str, read: Callable[[Path], T]) -> T | None:
    """Read the cached folder `key` with `read`. Returns None if the folder is missing or damaged.

    `read` may raise any of `DAMAGE_ERRORS` for a damaged folder.
    """
    folder = images_folder() / key
    if not folder.exists():
        return None
    try:
        return read(folder)
    except DAMAGE_ERRORS:  # the folder was complete when it was named `key`, but was damaged later
        shutil.rmtree(folder, ignore_errors=True)
        return None


def cached(key: str, write: Callable[[Path], None], read: Callable[[Path], T], *, within: Path | None = None) -> T:
    """Read the cached folder `key` with `read`. If the folder is missing or damaged, `write` creates it first.

    `write` fills a temporary folder (inside `within`, if given), which is renamed when it is complete. A failure or a
    second process therefore never leaves an incomplete folder. `read` must raise errors as described for `look_up`.

    Raises:
        StorageError: when the cache cannot be written; also whatever `write` raises.
    """
    if (found := look_up(key, read)) is not None:
        return found
    folder = images_folder() / key
    with writing_cache():
        create_folder(folder.parent)
        _remove_abandoned(folder.parent)
        beside = within or folder.parent
        with tempfile.TemporaryDirectory(prefix="partial-", dir=beside, ignore_cleanup_errors=True) as temporary:
            whole = Path(temporary) / key
            whole.mkdir()
            write(whole)
            for file in whole.iterdir():
                flush(file)
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # if the folder exists, another process has completed it
                    raise
        return read(folder)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of processes that were killed long ago."""
    for left in folder.glob("partial-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def unfinished_folder(name: str, source: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a locked cache folder to use while `source` is decoded. Another process that needs the folder waits.

    The folder is removed at the end. If the block fails and `keep` is true, it is removed only if it is empty.

    Raises:
        StorageError: when the cache cannot be written.
    """
    folder = images_folder() / f"unfinished-{name}"
    line = f"another process is reading {source}; waiting for it"
    with writing_cache():
        create_folder(folder.parent)
        with waiting_for_lock(folder.with_suffix(".lock"), partial(_print, line)), _removed(folder, keep=keep):
            for left in folder.glob("partial-*"):  # left by a process that was killed
                shutil.rmtree(left)
            yield folder


def _print(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _removed(folder: Path, *, keep: bool) -> Iterator[None]:
    folder.mkdir(exist_ok=True)  # the process that held the lock before may have removed the folder
    try:
        yield
    except BaseException as failure:
        if keep:
            with suppress(OSError):
                folder.rmdir()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(failure, Interrupted) and folder.exists():
            raise Interrupted(failure.number, "repeat the command to go on with the remaining archives") from None
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing_cache() -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError about the cache.

    Raises:
        StorageError: when the cache cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{images_folder()}: the cache of decoded images cannot be written ({error.strerror or error}); "
            "make room there, or set XDG_CACHE_HOME to a writable folder"
        ) from error
