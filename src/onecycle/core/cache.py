"""Where onecycle keeps for its user what took time to make and can be made again."""

from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The user's cache folder of onecycle, which may not exist yet."""
    return platformdirs.user_cache_path("onecycle")
