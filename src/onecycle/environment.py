"""What a run was computed with: `environment.json`."""

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onecycle.acceleration import Acceleration
from onecycle.hardware import Hardware

_LIBRARIES = ("onecycle", "torch", "numpy", "albumentations", "opencv-python-headless", "pillow", "safetensors")


def describe(hardware: Hardware, acceleration: Acceleration) -> dict[str, Any]:
    """The command, commit, date, versions and machine of this process, and the way it computes, as JSON values."""
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": hardware.to_json(),
        "acceleration": acceleration.to_json(),
    }


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "onecycle" if name == "__main__.py" else name


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, marked where files differ from it; None outside of one."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed package may lie in another project's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
