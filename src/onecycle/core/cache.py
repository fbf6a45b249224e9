"""The user's cache folder: downloads, decoded images, compiled kernels and measurements."""

import os
from pathlib import Path

import platformdirs

from onecycle.core.errors import InputError


def cache_folder() -> Path:
    """onecycle's folder in the user's cache. The folder may not exist yet.

    Raises:
        InputError: when the user has no home folder, for example in a container whose user ID has no account.
    """
    try:
        folder = platformdirs.user_cache_path("onecycle")
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # without a home folder, older platformdirs return a path that begins with ~
        raise InputError("this user has no home folder, so there is no cache; set HOME to a writable folder")
    return folder


def create_folder(folder: Path) -> None:
    """Create `folder` and its missing parents. Only this user can open the new folders.

    The folder lies in the cache.

    Raises:
        OSError: when a folder cannot be created.
    """
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def is_private(folder: Path) -> bool:
    """Whether `folder`, a folder in the cache, is private: no other user can write to it or replace it.

    Raises:
        OSError: when `folder` does not exist.
    """
    home = cache_folder().parent
    places = [place.stat() for place in (folder, *folder.parents) if place.is_relative_to(home)]
    return all(place.st_uid in (0, os.getuid()) and not place.st_mode & 0o022 for place in places)
