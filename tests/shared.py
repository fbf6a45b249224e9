"""Folders that one pytest worker fills for all workers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`. The first worker that calls this fills the folder with `make`, and the other workers wait."""
    with open(f"{folder}.made", "a+") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        marker.seek(0)
        if not marker.read():
            shutil.rmtree(folder, ignore_errors=True)  # an earlier call may have failed and left files
            folder.mkdir()
            make(folder)
            marker.write("yes")
    return folder
