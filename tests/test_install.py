"""Installation into `.venv` from local package indexes. Their packages are almost empty but have real names."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = "2.13.0"
UV = Path(sys.executable).with_name("uv")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the installer selects torch's CPU build on Linux only")
without_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
    reason="this machine has an NVIDIA driver",
)

BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "onecycle-0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        about = "onecycle-0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\\nName: onecycle\\nVersion: 0\\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{about}/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "onecycle"
version = "0"
dependencies = ["torch>=2.10"]
[project.optional-dependencies]
export = ["exporter"]
serve = []
dev = ["onecycle[export,serve]", "tester"]
"""


def make_wheel(folder: Path, name: str, version: str, *, requires: str = "", script: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
        if script:
            executable = zipfile.ZipInfo(f"{name}-{version}.data/scripts/{name}")
            executable.external_attr = 0o100755 << 16
            wheel.writestr(executable, script)
    return path


class Index:
    """Two local package indexes: one whose torch requires a CUDA package, and one with CPU builds of torch."""

    def __init__(self, folder: Path) -> None:
        ordinary, self.cpu_wheels = folder / "simple", folder / "cpu"
        make_wheel(ordinary / "torch", "torch", TORCH, requires="nvidia-cublas")
        make_wheel(ordinary / "nvidia-cublas", "nvidia_cublas", "13.0")
        make_wheel(ordinary / "exporter", "exporter", "1.0")
        make_wheel(ordinary / "tester", "tester", "1.0")
        make_wheel(ordinary / "pip", "pip", "1.0")
        make_wheel(ordinary / "uv", "uv", version("uv"), script=f'#!/bin/sh\nexec "{UV}" "$@"\n')
        make_wheel(self.cpu_wheels / "torch", "torch", f"{TORCH}+cpu")
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                asked.append(self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        hashes = {
            wheel.parent.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in ordinary.rglob("*.whl")
        }
        pins = {"exporter": "1.0", "pip": "1.0", "tester": "1.0", "uv": version("uv")}
        entries = [f"{name}=={pin} \\\n    --hash=sha256:{hashes[name]}" for name, pin in pins.items()]
        self.lock = "\n".join(sorted([*entries, f"torch=={TORCH}"])) + "\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    index = Index(tmp_path_factory.mktemp("index"))
    yield index
    index.close()


class Checkout:
    """A checkout with the real Makefile and installer, and an almost empty package."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        (path / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", path)
        shutil.copy(ROOT / "tools" / "install.py", path / "tools")
        (path / "requirements.lock").write_text(index.lock)
        (path / "pyproject.toml").write_text(PYPROJECT)
        (path / "backend.py").write_text(BACKEND)
        outer = ("MAKE", "MFLAGS", "PIP_", "UV_", "VIRTUAL_ENV", "TORCH_CPU_INDEX", "COV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
        self.environment = {
            **kept,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{index.url}/simple",
            "TORCH_CPU_INDEX": f"{index.url}/cpu",
            "UV_CACHE_DIR": str(path.parent / "uv-cache"),
            "no_proxy": "127.0.0.1",
        }
        index.asked.clear()

    def start(self, target: str = "installed", **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["make", f".venv/{target}", f"PYTHON={sys.executable}"],
            cwd=self.path,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def install(self, target: str = "installed", **variables: str) -> tuple[int, str]:
        process = self.start(target, **variables)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def packages(self) -> set[str]:
        found = self.path.glob(".venv/lib/python*/site-packages/*.dist-info")
        return {path.name.removesuffix(".dist-info") for path in found}


@pytest.fixture
def checkout(tmp_path: Path, index: Index) -> Checkout:
    return Checkout(tmp_path / "a checkout", index)


TRAINING = {"onecycle-0", "exporter-1.0", "pip-1.0", f"uv-{version('uv')}"}


@without_driver
def test_without_a_driver_torch_alone_comes_from_the_index_of_cpu_builds(checkout: Checkout, index: Index) -> None:
    assert checkout.install() == (0, "Installing into .venv\n")
    assert checkout.install() == (0, "make: '.venv/installed' is up to date.\n")
    assert checkout.packages() == TRAINING | {f"torch-{TORCH}+cpu"}
    assert {path for path in index.asked if path.startswith("/cpu")} <= {
        "/cpu/torch/",
        f"/cpu/torch/torch-{TORCH}+cpu-py3-none-any.whl",
        f"/cpu/torch/torch-{TORCH}%2Bcpu-py3-none-any.whl",
    }


@without_driver
def test_where_that_index_cannot_be_reached_one_line_says_so_and_the_ordinary_build_is_taken(
    checkout: Checkout,
) -> None:
    code, output = checkout.install(TORCH_CPU_INDEX="http://127.0.0.1:9/cpu")
    assert code == 0, output
    assert output.splitlines() == [
        "Installing into .venv",
        "cannot install torch's CPU build from http://127.0.0.1:9/cpu; installing the default build, with several "
        "gigabytes of CUDA",
    ]
    assert checkout.packages() == TRAINING | {f"torch-{TORCH}", "nvidia_cublas-13.0"}


def test_a_cpu_build_that_pip_is_configured_to_find_is_taken_without_asking_elsewhere(
    checkout: Checkout, index: Index
) -> None:
    code, output = checkout.install(PIP_FIND_LINKS=str(index.cpu_wheels / "torch"))
    assert (code, output) == (0, "Installing into .venv\n")
    assert checkout.packages() == TRAINING | {f"torch-{TORCH}+cpu"}
    assert not [path for path in index.asked if path.startswith("/cpu")]


def test_with_a_driver_torch_brings_cuda(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    code, output = checkout.install(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert (code, output) == (0, "Installing into .venv\n")
    assert checkout.packages() == TRAINING | {f"torch-{TORCH}", "nvidia_cublas-13.0"}


def test_what_was_installed_for_tests_stays_when_the_lock_changes(checkout: Checkout, index: Index) -> None:
    assert checkout.install("installed-dev", PIP_FIND_LINKS=str(index.cpu_wheels / "torch"))[0] == 0
    assert {"exporter-1.0", "tester-1.0"} < checkout.packages()
    later = time.time() + 10
    os.utime(checkout.path / "requirements.lock", (later, later))
    mine = checkout.path / ".venv" / "mine"
    mine.touch()
    assert checkout.install(PIP_FIND_LINKS=str(index.cpu_wheels / "torch"))[0] == 0
    assert mine.exists(), "a complete .venv is updated, not created again"
    assert (checkout.path / ".venv" / "installed-dev").exists()


def test_a_package_of_another_content_than_the_locks_is_refused(checkout: Checkout, index: Index) -> None:
    lock = checkout.path / "requirements.lock"
    start, _, rest = lock.read_text().partition("exporter==1.0 \\\n    --hash=sha256:")
    lock.write_text(f"{start}exporter==1.0 \\\n    --hash=sha256:{'0' * 64}{rest[64:]}")
    code, output = checkout.install(PIP_FIND_LINKS=str(index.cpu_wheels / "torch"))
    assert code != 0 and "Hash mismatch for `exporter==1.0`" in output
    assert not (checkout.path / ".venv" / "installed").exists()


@pytest.mark.parametrize("reached", [pytest.param("uv.txt", marks=pytest.mark.long), "bin/uv"])
def test_an_installation_that_was_killed_is_completed_by_the_next(
    checkout: Checkout, index: Index, reached: str
) -> None:
    find: dict[str, str] = {"PIP_FIND_LINKS": str(index.cpu_wheels / "torch")}
    process = checkout.start(**find)
    wait_until(lambda: any(checkout.path.glob(f".venv/{reached}")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (checkout.path / ".venv" / "installed").exists()
    assert checkout.install(**find) == (0, "Installing into .venv\n")
    assert checkout.packages() == TRAINING | {f"torch-{TORCH}+cpu"}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("pip", [None, "22.0.2"])
def test_a_python_without_a_usable_pip_installs_with_the_pip_of_the_new_environment(
    checkout: Checkout, index: Index, tmp_path: Path, pip: str | None
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "python"], check=True)
    (packages,) = tmp_path.glob("python/lib/python*/site-packages")
    if pip:
        (packages / "pip").mkdir()
        (packages / "pip" / "__init__.py").touch()
        (packages / "pip" / "__main__.py").write_text("raise SystemExit('no such option: --python')")
        (packages / f"pip-{pip}.dist-info").mkdir()
        (packages / f"pip-{pip}.dist-info" / "METADATA").write_text(f"Name: pip\nVersion: {pip}\n")
    install = [tmp_path / "python" / "bin" / "python", "tools/install.py"]
    environment = checkout.environment | {"PIP_FIND_LINKS": str(index.cpu_wheels / "torch")}
    subprocess.run(install, cwd=checkout.path, env=environment, check=True, timeout=120)
    assert checkout.packages() >= TRAINING


def test_an_incomplete_environment_that_is_active_is_created_again(checkout: Checkout, index: Index) -> None:
    subprocess.run([sys.executable, "-m", "venv", checkout.path / ".venv"], check=True)
    environment = checkout.environment | {"PIP_FIND_LINKS": str(index.cpu_wheels / "torch")}
    install = [checkout.path / ".venv" / "bin" / "python", "tools/install.py"]
    subprocess.run(install, cwd=checkout.path, env=environment, check=True, timeout=120)
    assert checkout.packages() >= TRAINING


def test_an_old_python_is_refused_in_one_clear_line(checkout: Checkout) -> None:
    pretend = "import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path('tools/install.py', run_name='__main__')"
    tried = subprocess.run([sys.executable, "-c", pretend], cwd=checkout.path, capture_output=True, text=True)
    (line,) = tried.stderr.splitlines()
    assert tried.returncode == 1 and line.startswith("onecycle needs Python 3.11 or newer, and ") and "3.9" in line
    assert not (checkout.path / ".venv").exists()


def test_pips_settings_are_handed_on_and_the_users_own_for_uv_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from install import Uv

    for name in ("UV_INDEX", "UV_INDEX_STRATEGY", "UV_FIND_LINKS", "UV_INSECURE_HOST", "SSL_CERT_FILE", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own.example/simple")
    uv = Uv(
        {
            "index-url": "https://company.example/simple",
            "extra-index-url": "\nhttps://a.example/simple\nhttps://b.example/simple",
            "find-links": "/wheels https://c.example/wheels",
            "trusted-host": "a.example b.example",
            "cert": "/etc/company.pem",
            "proxy": "http://proxy.example:8080",
            "no-index": "true",
            "constraint": "/etc/limits.txt",
        }
    )
    assert uv.options == ["--no-index", "--constraint", "/etc/limits.txt"]
    expected = {
        "UV_DEFAULT_INDEX": "https://own.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,https://c.example/wheels",
        "UV_INSECURE_HOST": "a.example b.example",
        "SSL_CERT_FILE": "/etc/company.pem",
        "HTTPS_PROXY": "http://proxy.example:8080",
    }
    assert {name: uv.environment[name] for name in expected} == expected
