"""The environment of a run, as recorded in `environment.json`: command, versions, hardware, compute plan and data."""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onecycle.compute.hardware import Hardware
from onecycle.compute.kernels import native
from onecycle.compute.plan import ComputePlan
from onecycle.core.errors import InputError
from onecycle.core.files import reading
from onecycle.core.option_groups import DataConfig
from onecycle.data import Dataset
from onecycle.data.readers.loading import is_path
from onecycle.distributed import job
from onecycle.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from onecycle.storage.run_folder import RunFolder

COMPUTING = ("onecycle", "torch", "numpy", "albumentations", "opencv-python-headless")
"""Libraries whose versions may change the results of a run, bit for bit. Image decoders are not listed, because the
fingerprint of the data covers the decoded images."""

_LIBRARIES = (*COMPUTING, "pillow", "safetensors")
_OPENCV = "opencv-python-headless"


def describe(hardware: Hardware, plan: ComputePlan, group: ProcessGroup = SINGLE_PROCESS) -> dict[str, Any]:
    """The command, commit, source code, date, versions, hardware and compute plan of this process, as JSON values."""
    processes = {"processes": list(group.names), "job": job.name()} if job.is_part() else {}
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        **code(),
        "versions": {"python": platform.python_version(), **versions(_LIBRARIES)},
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": hardware.to_json(),
        "compute_plan": plan.to_json(),
        "kernels": kernels_of(plan),
        **processes,
    }


def code() -> dict[str, Any]:
    """The commit and the digest of this package's source code, and the current date, as JSON values."""
    return {"commit": _commit(), "code": code_digest(), "date": time.strftime("%Y-%m-%d %H:%M:%S %z")}


@functools.cache
def code_digest() -> str:
    """A SHA-256 of the package's source files in Python and C. The version number alone does not identify the code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for kind in ("py", "c", "h") for path in package.rglob(f"*.{kind}")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def kernels_of(plan: ComputePlan) -> str | None:
    """The identity of the compiled kernels if `plan` uses them, else None."""
    return native.build_id() if plan.compiled_kernels else None


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """The installed version of each of `libraries`."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        if library != _OPENCV:
            raise
        import cv2  # imported late, because it is slow

        return cv2.__version__  # here another package, such as opencv-python, provides OpenCV


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "onecycle" if name == "__main__.py" else name


def _commit() -> str | None:
    """The Git commit of this package, with "-dirty" appended if files have changed. None outside a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        # This fails if Git does not track this file: an installed package may be inside another project's checkout.
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def recorded_plan(folder: RunFolder) -> ComputePlan:
    """The compute plan of the run in `folder`.

    Raises:
        InputError: when the plan is not recorded.
    """
    with reading(folder.environment):
        return ComputePlan.from_json(folder.read_json(folder.environment)["compute_plan"])


def recorded_fingerprint(folder: RunFolder) -> str:
    """The fingerprint of the data of the run in `folder`.

    Raises:
        InputError: when the fingerprint is not recorded.
    """
    with reading(folder.environment):
        return str(folder.read_json(folder.environment)["dataset"]["fingerprint"])


def recorded_job(folder: RunFolder) -> str | None:
    """The name of the torchrun job that started the run in `folder`. None if no job started the run.

    Raises:
        InputError: when the environment is not recorded.
    """
    with reading(folder.environment):
        return folder.read_json(folder.environment).get("job")


def recorded_versions(folder: RunFolder) -> dict[str, str]:
    """The versions of the `COMPUTING` libraries when the run in `folder` started.

    Raises:
        InputError: when the versions are not recorded.
    """
    with reading(folder.environment):
        recorded = folder.read_json(folder.environment)["versions"]
        return {name: recorded[name] for name in COMPUTING}


def require_data(folder: RunFolder, config: DataConfig) -> None:
    """Check that the data of the run in `folder` exists, if `config` names a path.

    Raises:
        InputError: when there is nothing at this path.
    """
    if is_path(config.data) and not os.path.exists(os.path.expanduser(config.data)):
        raise InputError(f"{config.data}, the data of {folder.path}, does not exist; give its path with --data")


def require_same_data(folder: RunFolder, dataset: Dataset) -> None:
    """Check that `dataset` is the data of the run in `folder`.

    Raises:
        InputError: when the data differs.
    """
    then, now = recorded_fingerprint(folder), dataset.fingerprint
    if now != then:
        raise InputError(
            f"{folder.path} was trained on other data, with the fingerprint {then[:12]}; {dataset.source} has the "
            f"fingerprint {now[:12]}; give the data of the run with --data"
        )


def recorded_processes(folder: RunFolder) -> int:
    """The number of processes that started the run in `folder`.

    Raises:
        InputError: when the environment is not recorded.
    """
    with reading(folder.environment):
        return len(folder.read_json(folder.environment).get("processes", [None]))


def has_other_code(folder: RunFolder) -> bool:
    """Whether the run in `folder` was last trained with code that differs from the installed code.

    Also true if the record has no code digest.

    Raises:
        InputError: when the environment is not recorded.
    """
    with reading(folder.environment):
        recorded = folder.read_json(folder.environment)
        latest: dict[str, Any] = [recorded, *recorded.get("resumed", [])][-1]
        return latest.get("code") != code_digest()


def was_changed(folder: RunFolder) -> bool:
    """Whether the run in `folder` was ever resumed with other code or on another machine.

    Raises:
        InputError: when the environment is not recorded.
    """
    with reading(folder.environment):
        return bool(folder.read_json(folder.environment).get("resumed"))


def record_change(folder: RunFolder, hardware: Hardware, plan: ComputePlan) -> None:
    """Record in `environment.json` that the run in `folder` is resumed with other code or on another machine.

    Raises:
        StorageError: when the run folder cannot be written.
    """
    with reading(folder.environment):
        recorded = folder.read_json(folder.environment)
        earlier = [*recorded.get("resumed", [])]
    change = {**code(), "hardware": hardware.to_json(), "kernels": kernels_of(plan)}
    folder.write_json(folder.environment, {**recorded, "resumed": [*earlier, change]})


def other_machine(folder: RunFolder, hardware: Hardware, plan: ComputePlan) -> str | None:
    """Describe how the machine that last trained the run in `folder` differs from this machine.

    Returns None if it does not differ. Differences that cannot change the last bits of the result are ignored. Values
    that an older record lacks are not compared.
    """
    with reading(folder.environment):
        recorded = folder.read_json(folder.environment)
        recorded = [recorded, *recorded.get("resumed", [])][-1]
        then = recorded["hardware"]
        if plan.device != "cpu":
            return None if then["gpu"] == hardware.gpu else f"another GPU, {then['gpu']}"
        if then["cpu"] != hardware.cpu:
            return f"another CPU, {then['cpu']}"
        if then.get("cpu_features", hardware.cpu_features) != hardware.cpu_features:
            return f"another {hardware.cpu}, with other instructions or caches"
        if recorded.get("kernels", kernels := kernels_of(plan)) != kernels:
            return "this CPU, but with kernels that were compiled differently"
        return None
