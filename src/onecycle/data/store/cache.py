"""The cache of decoded images."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from onecycle.core.cache import cache_folder, create_folder
from onecycle.core.errors import StorageError
from onecycle.core.files import flush

T = TypeVar("T")


def images_folder() -> Path:
    """The folder of decoded images in the user's cache."""
    return cache_folder() / "images"


def look_up(key: str, read: Callable[[Path], T]) -> T | None:
    """Read the cached folder `key` with `read`. Returns None if the folder is missing or damaged.

    `read` must raise OSError, ValueError or KeyError for a damaged folder.
    """
    folder = images_folder() / key
    if not folder.exists():
        return None
    try:
        return read(folder)
    except (OSError, ValueError, KeyError):  # the folder was complete when it got this name, so it is damaged
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
                if not folder.is_dir():  # an existing folder is the complete one of another process
                    raise
        return read(folder)


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
