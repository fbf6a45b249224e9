"""What a run was computed with: `environment.json`, and what of it must be the same to go on."""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onecycle.compute.hardware import Hardware
from onecycle.compute.plan import Acceleration
from onecycle.core.errors import InputError
from onecycle.core.files import reading
from onecycle.data import Dataset
from onecycle.distributed import job, ranks
from onecycle.storage.run_folder import RunFolder

COMPUTING = ("onecycle", "torch", "numpy", "albumentations", "opencv-python-headless")
"""The libraries on whose versions the bits of a run may depend, once its images are decoded."""

_LIBRARIES = (*COMPUTING, "pillow", "safetensors")


def describe(hardware: Hardware, acceleration: Acceleration) -> dict[str, Any]:
    """The command, commit, date, versions and machine of this process, and the way it computes, as JSON values."""
    together = {"processes": list(ranks.current().names), "job": job.name()} if job.is_part() else {}
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {"python": platform.python_version(), **versions(_LIBRARIES)},
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": hardware.to_json(),
        "acceleration": acceleration.to_json(),
        **together,
    }


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """The installed version of each."""
    return {name: version(name) for name in libraries}


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


def recorded_acceleration(folder: RunFolder) -> Acceleration:
    """The way that the run in `folder` computes.

    Raises:
        InputError: when it is not recorded.
    """
    with reading(folder.environment):
        return Acceleration.from_json(folder.read_json(folder.environment)["acceleration"])


def recorded_fingerprint(folder: RunFolder) -> str:
    """That of the data of the run in `folder`.

    Raises:
        InputError: when it is not recorded.
    """
    with reading(folder.environment):
        return str(folder.read_json(folder.environment)["dataset"]["fingerprint"])


def recorded_job(folder: RunFolder) -> str | None:
    """The name of the job that began the run in `folder`, or None.

    Raises:
        InputError: when it is not recorded.
    """
    with reading(folder.environment):
        return folder.read_json(folder.environment).get("job")


def recorded_versions(folder: RunFolder) -> dict[str, str]:
    """Those of `COMPUTING` that the run in `folder` began with.

    Raises:
        InputError: when they are not recorded.
    """
    with reading(folder.environment):
        recorded = folder.read_json(folder.environment)["versions"]
        return {name: recorded[name] for name in COMPUTING}


def require_same_data(folder: RunFolder, dataset: Dataset) -> None:
    """Refuse data that are not those of the run in `folder`.

    Raises:
        InputError: then.
    """
    then, now = recorded_fingerprint(folder), dataset.fingerprint
    if now != then:
        raise InputError(
            f"{folder.path} was trained on other data: fingerprint {then[:12]}, and {dataset.source} has {now[:12]}"
        )


def other_processor(folder: RunFolder, hardware: Hardware) -> str | None:
    """The processor that the run in `folder` began on, where it is not this one."""
    with reading(folder.environment):
        then: str = folder.read_json(folder.environment)["hardware"]["cpu"]
        return then if then != hardware.cpu else None
