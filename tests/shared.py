"""What one test worker makes for all of them."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, filled by `make` in the first worker that asks for it. The other workers wait."""
    with open(f"{folder}.made", "a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        made.seek(0)
        if not made.read():
            shutil.rmtree(folder, ignore_errors=True)  # a worker failed to make it
            folder.mkdir()
            make(folder)
            made.write("yes")
    return folder
