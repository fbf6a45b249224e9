"""The user's cache: what was downloaded or decoded once and need not be again."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError
from onecycle.core.files import flush

T = TypeVar("T")


def images_folder() -> Path:
    """The part of the cache that is for decoded images."""
    return cache_folder() / "images"


def look_up(key: str, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of the cached folder `key`, or None where it is absent or damaged.

    `read` says that a folder is damaged by OSError, ValueError or KeyError.
    """
    place = images_folder() / key
    if not place.exists():
        return None
    try:
        return read(place)
    except (OSError, ValueError, KeyError):  # it appears only when whole, so what cannot be read is damaged
        shutil.rmtree(place, ignore_errors=True)
        return None


def cached(key: str, write: Callable[[Path], None], read: Callable[[Path], T], *, within: Path | None = None) -> T:
    """What `read` makes of the cached folder `key`, which `write` fills first where it is absent or damaged.

    `write` fills a temporary folder, in the folder `within` if given, that takes its place only when whole, so neither
    a failure nor a second process leaves half a folder. `read` is as for `look_up`.

    Raises:
        InputError: the cache cannot be written; and whatever `write` raises.
    """
    if (found := look_up(key, read)) is not None:
        return found
    place = images_folder() / key
    with writing_cache():
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = within or place.parent
        with tempfile.TemporaryDirectory(prefix="partial-", dir=beside, ignore_cleanup_errors=True) as temporary:
            whole = Path(temporary) / key
            whole.mkdir()
            write(whole)
            for file in whole.iterdir():
                flush(file)
            try:
                whole.rename(place)
            except OSError:
                if not place.is_dir():  # otherwise another process was first, with the same content
                    raise
        return read(place)


@contextmanager
def writing_cache() -> Iterator[None]:
    """Turn what the system says to writing into the cache into one line about it.

    Raises:
        InputError: when it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{images_folder()}: the cache of decoded images cannot be written ({error.strerror or error}); "
            "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
