import importlib.util
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.errors import InputError
from onecycle.core.option_groups import DataConfig
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder


def test_the_environment_has_command_versions_hardware_and_compute_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/onecycle", "train", "--data", "digits"])
    machine, plan = hardware.detect(), ComputePlan(precision="bfloat16", threads=2)
    described = environment.describe(machine, plan)
    assert json.loads(json.dumps(described)) == described
    assert described.keys() == {
        *("command", "commit", "code", "date", "versions", "system", "hardware", "compute_plan", "kernels")
    }
    assert described["kernels"] is None, "this plan uses no compiled kernels"
    assert described["command"] == "onecycle train --data digits"
    assert described["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["versions"]["torch"] == version("torch")
    assert {"onecycle", "numpy", "albumentations", "pillow", "safetensors"} <= described["versions"].keys()
    assert described["hardware"] == machine.to_json()
    assert ComputePlan.from_json(described["compute_plan"]) == plan


def test_another_package_may_provide_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    def version_without_headless(name: str) -> str:
        if name == "opencv-python-headless":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(environment, "version", version_without_headless)
    recorded = environment.versions(environment.COMPUTING)
    assert recorded.keys() == set(environment.COMPUTING)
    assert version("opencv-python-headless").startswith(recorded["opencv-python-headless"])
    with pytest.raises(PackageNotFoundError):
        environment.versions(["no-such-package"])


def test_the_digest_of_the_code_changes_with_each_source_file(tmp_path: Path) -> None:
    package = tmp_path / "onecycle"
    shutil.copytree(Path(environment.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))

    def digest() -> str:
        command = [sys.executable, "-c", "from onecycle.run import environment as e; print(e.code_digest())"]
        made = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        return made.stdout.strip()

    digests = [digest()]
    assert digests == [environment.code_digest()]
    for file in ("train/loop.py", "compute/kernels/amx.c"):
        path = package / file
        path.write_text(path.read_text() + "\n")
        digests.append(digest())
    (package / "cli" / "notes.txt").write_text("not a source file")
    assert digest() == digests[-1]
    (package / "models" / "custom_resnet.py").rename(package / "models" / "renamed.py")
    digests.append(digest())
    assert len(set(digests)) == 4 and all(len(each) == 64 for each in digests)


def test_kernels_of_another_compiler_are_another_machine(tmp_path: Path, native_kernels: None) -> None:
    machine, plan, folder = hardware.detect(), ComputePlan(native_kernels=True), RunFolder.create(tmp_path / "run")
    described = environment.describe(machine, plan)
    assert described["kernels"]
    folder.write_json(folder.environment, described)
    assert environment.other_machine(folder, machine, plan) is None
    folder.write_json(folder.environment, {**described, "kernels": "0" * 16})
    assert (
        environment.other_machine(folder, machine, plan) == "this CPU, but with kernels that were compiled differently"
    )
    del described["kernels"], described["hardware"]["cpu_features"]  # a record from before these were recorded
    folder.write_json(folder.environment, described)
    assert environment.other_machine(folder, machine, plan) is None


def test_the_date_is_now_with_its_offset_from_utc() -> None:
    date = environment.describe(hardware.detect(), ComputePlan())["date"]
    seconds = time.mktime(time.strptime(date[:19], "%Y-%m-%d %H:%M:%S"))
    assert abs(seconds - time.time()) < 10
    assert date[20:] == time.strftime("%z")


def test_the_command_of_python_m_onecycle_is_onecycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/onecycle/__main__.py", "summary"])
    assert environment.describe(hardware.detect(), ComputePlan())["command"] == "onecycle summary"


def test_the_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["onecycle", "train", "--data", "my images/a & b"])
    command = environment.describe(hardware.detect(), ComputePlan())["command"]
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == ["onecycle", "train", "--data", "my images/a & b"]


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *author, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def commit_recorded_in(folder: Path) -> str | None:
    """The commit that `environment.describe` records when its module is in `folder`."""
    path = shutil.copy(environment.__file__, folder)
    spec = importlib.util.spec_from_file_location("copied_environment", path)
    assert spec and spec.loader
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    commit: str | None = copied.describe(hardware.detect(), ComputePlan())["commit"]
    return commit


def test_the_commit_is_that_of_the_checkout_and_marked_dirty_if_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    shutil.copy(environment.__file__, tmp_path)
    (tmp_path / "other.py").write_text("")
    git(tmp_path, "add", "other.py", "environment.py")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_recorded_in(tmp_path) == commit
    (tmp_path / "other.py").write_text("changed")
    assert commit_recorded_in(tmp_path) == f"{commit}-dirty"


def test_there_is_no_commit_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_recorded_in(tmp_path) is None


def test_the_data_of_a_run_may_be_a_name_or_a_path_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for data in ("cifar10", "digits", "~/photos", str(tmp_path / "photos")):
        environment.require_data(folder, DataConfig(data=data))
    with pytest.raises(InputError, match="^~/pictures, the data of .*/run, does not exist; give its path with --data"):
        environment.require_data(folder, DataConfig(data="~/pictures"))
