"""The user's cache folder: downloads, decoded images, compiled kernels and measurements."""

from pathlib import Path

import platformdirs

from onecycle.core.errors import InputError


def cache_folder() -> Path:
    """onecycle's folder in the user's cache. The folder may not exist yet.

    Raises:
        InputError: when the user has no home folder, such as a container's user without a name.
    """
    try:
        folder = platformdirs.user_cache_path("onecycle")
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # older versions of platformdirs return a path that begins with ~
        raise InputError("this user has no home folder, so there is no cache; set HOME to a writable folder")
    return folder
