"""The user's cache: what was downloaded or decoded once and need not be again."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onecycle.errors import InputError
from onecycle.files import flush
from onecycle.user_cache import cache_folder

T = TypeVar("T")


def cached(key: str, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` makes of the cached folder `key`, which `write` fills first where it is absent or damaged.

    `write` fills a temporary folder that takes its place only when whole, so neither a failure nor a second process
    leaves half a folder. `read` says that a folder is damaged by OSError, ValueError or KeyError.

    Raises:
        InputError: the cache cannot be written; and whatever `write` raises.
    """
    place = cache_folder() / "images" / key
    if place.exists():  # it appears only when whole, so what cannot be read is damaged
        try:
            return read(place)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(place, ignore_errors=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="partial-", dir=place.parent, ignore_cleanup_errors=True) as temporary:
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
    except OSError as error:
        raise InputError(
            f"{place.parent}: the cache of decoded images cannot be written ({error.strerror or error}); "
            "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
