"""Tests of the make commands, the lock file, and all files: none contains a path that is specific to one machine."""

import fnmatch
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
# The name, version, environment marker and hashes of each locked package.
ENTRIES = re.findall(
    r"^([\w.-]+)==([\w.]+)( ; [^\n\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", LOCK, flags=re.MULTILINE
)
PINS: dict[str, str] = {canonicalize_name(name): version for name, version, _, _ in ENTRIES}
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TARGETS = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


# Tests of the make commands


def make(*arguments: str, folder: Path, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `make` as a user would, without the environment variables that an outer `make test` has set."""
    outer = ("MAKE", "MFLAGS", "ONECYCLE_DATA", "PYTHON", "ARGS", "RECIPE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        input=stdin,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """A folder with a copy of the files that `make install` needs, without `.venv`."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "tools/install.py"):
        (checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    return checkout


def put_stamps(checkout: Path) -> float:
    """Create the stamp files that tell make that the checkout is installed. Returns their modification time."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "uv").touch()
    installed = max(path.stat().st_mtime for path in checkout.rglob("*") if path.is_file()) + 10
    for name in ("installed", "installed-dev"):
        (checkout / ".venv" / name).touch()
        os.utime(checkout / ".venv" / name, (installed, installed))
    return installed


def test_the_makefile_offers_the_promised_commands() -> None:
    assert {
        "train",
        "test",
        "lint",
        "notebook",
        "faults",
        "cluster-test",
        "benchmarks-test",
        "lock",
        "newest-test",
    } <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_can_be_planned(target: str) -> None:
    plan = make("-n", target, folder=ROOT)
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.strip()


def test_make_alone_lists_every_command() -> None:
    listed = make(folder=ROOT).stdout
    assert all(f"make {target}: " in listed for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_first_use_installs_what_the_command_needs_before_it_runs_anything(bare_checkout: Path, target: str) -> None:
    plan = make("-n", target, folder=bare_checkout).stdout
    put_stamps(bare_checkout)
    work = make("-n", target, folder=bare_checkout).stdout
    installing = {"train": "python3 tools/install.py\n", "help": ""}.get(target, "python3 tools/install.py --dev\n")
    assert plan == installing + work


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("train", [".venv/bin/onecycle train --data auto"]),
        ("test", [".venv/bin/pytest --numprocesses 3 --dist worksteal"]),
        ("notebook", [".venv/bin/jupyter-execute --inplace S10.ipynb"]),
    ],
)
def test_an_installed_checkout_goes_straight_to_work(bare_checkout: Path, target: str, steps: list[str]) -> None:
    put_stamps(bare_checkout)
    assert [line.strip() for line in make("-n", target, folder=bare_checkout).stdout.splitlines()] == steps


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml", "tools/install.py"])
def test_a_changed_lock_project_file_or_installer_installs_again(bare_checkout: Path, changed: str) -> None:
    later = put_stamps(bare_checkout) + 10
    os.utime(bare_checkout / changed, (later, later))
    assert "tools/install.py" in make("-n", "test", folder=bare_checkout).stdout


def test_arguments_reach_the_training_command(bare_checkout: Path) -> None:
    put_stamps(bare_checkout)
    plan = make("-n", "train", "ARGS=--epochs 1", folder=bare_checkout).stdout
    assert plan.strip().endswith("train --data auto --epochs 1")
    plan = make("-n", "train", "RECIPE=quick", "ARGS=--seed 1", folder=bare_checkout).stdout
    assert plan.strip().endswith("train --data auto --recipe quick --seed 1")
    for arguments in ("--data digits", "--resume runs/one", "--config runs/one/config.json"):
        plan = make("-n", "train", f"ARGS={arguments}", folder=bare_checkout).stdout
        assert plan.split()[-3:] == ["train", *arguments.split()]


def exported_data(checkout: Path, **variables: str) -> str:
    """The value of ONECYCLE_DATA in a command that make starts in `checkout`, or "unset"."""
    show = 'show:\n\t@echo "$${ONECYCLE_DATA-unset}"\n'
    return make("-s", "-f", "Makefile", "-f", "-", "show", folder=checkout, stdin=show, **variables).stdout.strip()


def test_make_hands_on_the_shared_data_folder_as_an_absolute_path(bare_checkout: Path) -> None:
    assert exported_data(bare_checkout) == "unset"
    shared = bare_checkout.parent / "shared" / "cifar10"
    shared.mkdir(parents=True)
    assert exported_data(bare_checkout) == str(shared.resolve())


def test_the_users_own_data_folder_wins(bare_checkout: Path) -> None:
    (bare_checkout.parent / "shared" / "cifar10").mkdir(parents=True)
    assert exported_data(bare_checkout, ONECYCLE_DATA="mine") == "mine"


def test_the_ci_script_lints_and_then_ends_with_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-3:] == ["make lint", "make newest-test", "make test"]


# Tests of the lock file


def test_the_lock_pins_the_torch_that_pip_finds_for_the_cpu() -> None:
    assert PINS["torch"] == "2.13.0"


def test_the_lock_pins_what_only_the_installer_names() -> None:
    assert {"editables", "pip", "uv"} <= PINS.keys()


def test_every_lock_line_is_part_of_an_exact_version_with_hashes_but_torchs() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(1 + hashes.count("--hash") for *_, hashes in ENTRIES)
    assert [name for name, _, _, hashes in ENTRIES if not hashes] == ["torch"]


def test_the_lock_is_for_all_platforms_and_for_every_python_the_package_allows() -> None:
    markers = {name: marker for name, _, marker, _ in ENTRIES}
    assert markers["colorama"] == " ; sys_platform == 'win32'"
    assert not [name for name, marker in markers.items() if "python_full_version" in marker]
    wheels_of_one_platform = 10
    assert next(h for name, *_, h in ENTRIES if name == "numpy").count("--hash") > 2 * wheels_of_one_platform


def test_the_lock_names_no_index_no_host_and_no_build() -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|\+cpu", LOCK)


def test_the_lock_brings_no_cuda_package() -> None:
    assert not [name for name in PINS if re.match(r"nvidia|cuda|triton", name)]


def test_the_lock_names_each_package_once() -> None:
    assert len(PINS) == len(ENTRIES)


def declared_requirements() -> list[str]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["build-system"]["requires"],
        *sum(extras.values(), []),
    ]
    own_name = PYPROJECT["project"]["name"]
    return sorted({requirement for requirement in declared if Requirement(requirement).name != own_name})


@pytest.mark.parametrize("declared", declared_requirements())
def test_a_declared_dependency_is_pinned_at_a_version_it_allows(declared: str) -> None:
    requirement = Requirement(declared)
    pinned = PINS.get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} is missing from requirements.lock"
    assert requirement.specifier.contains(pinned, prereleases=True), f"{declared} refuses the pinned {pinned}"


# Tests of all files in the repository


def repository_files() -> list[Path]:
    """Every file that git tracks or would add. Without git, every file outside ignored folders."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").rstrip("\n")).resolve() == ROOT:
            listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
            return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        pass
    return walk_files()


def walk_files() -> list[Path]:
    """Every file below the root, except in folders that .gitignore lists."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")]
    files = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            name for name in subfolders if name != ".git" and not any(fnmatch.fnmatch(name, glob) for glob in ignored)
        ]
        files += [Path(folder) / name for name in names]
    return files


def text_of(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def machine_paths(text: str) -> list[str]:
    """The absolute paths in `text` that are specific to one machine: home folders, and folders below /work."""
    unix = "|".join(["home", "Users", "root", "work"])
    return re.findall(rf"(?<![\w.~}})-])/(?:{unix})/[\w.-]+|\b[A-Za-z]:\\+Users\\+\w+", text)


@pytest.mark.parametrize("folder", ["home", "Users", "root", "work"])
@pytest.mark.parametrize("before", ['"cd ', "file://", "=", ""])
def test_a_path_of_one_machine_is_recognised(folder: str, before: str) -> None:
    assert machine_paths(f"{before}/{folder}/ada/onecycle") == [f"/{folder}/ada"]


def test_a_windows_home_is_recognised_also_inside_json() -> None:
    assert len(machine_paths("C:" + r"\Users\ada and C:" + r"\\Users\\ada")) == 2


@pytest.mark.parametrize(
    "innocent", ["~/home/photos", "../home/photos", "https://a.org/home/page", "{root}/home/x", "/data/x"]
)
def test_a_path_that_any_machine_may_have_is_left_alone(innocent: str) -> None:
    assert machine_paths(f"see {innocent} there") == []


@pytest.mark.parametrize("list_files", [repository_files, walk_files])
def test_both_ways_to_list_the_repository_find_this_file_and_no_ignored_one(
    list_files: Callable[[], list[Path]],
) -> None:
    files = list_files()
    assert Path(__file__).resolve() in files
    assert ROOT / "Makefile" in files
    assert not [path for path in files if {".venv", ".git", "__pycache__"} & set(path.relative_to(ROOT).parts)]


def test_no_file_names_a_path_of_one_machine() -> None:
    texts = {path: text_of(path) for path in repository_files()}
    found = {str(path.relative_to(ROOT)): machine_paths(text) for path, text in texts.items() if text}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_the_package_never_names_the_shared_data_folder() -> None:
    assert [path.name for path in SOURCES if "shared/cifar10" in path.read_text(encoding="utf-8")] == []
