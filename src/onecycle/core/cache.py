"""The user's cache folder: downloads, decoded images, compiled kernels and measurements."""

from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """onecycle's folder in the user's cache. The folder may not exist yet."""
    return platformdirs.user_cache_path("onecycle")
