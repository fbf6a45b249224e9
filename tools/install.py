"""Install onecycle from this checkout into `.venv`, at the versions of requirements.lock.

    python tools/install.py          what `make train` needs: training, its report, prediction, export, the service
    python tools/install.py --dev    also what all other commands need

`uv` installs the packages. `uv` does not read pip's configuration, so this script passes pip's indexes, folders of
wheels, certificates and proxies to `uv`. On Linux without an NVIDIA driver, this script installs torch's CPU build,
which is several gigabytes smaller.

The files `.venv/installed` and `.venv/installed-dev` are written last. If `.venv/installed` is missing, the next
installation creates `.venv` from scratch, because an interrupted installation may leave incomplete packages behind.
"""

from __future__ import annotations  # an old Python must run this file up to the version check

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path("requirements.lock")
VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
STAMP = VENV / "installed"
DEV_STAMP = VENV / "installed-dev"

TORCH = "torch==2.13.0"  # without a hash in the lock, because each machine gets the build of torch that fits it
TORCH_CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")


def has_usable_pip() -> bool:
    """Whether this Python has a pip that can install into another environment: 22.3 or newer, outside `.venv`."""
    try:
        found = [int(part) for part in re.findall(r"\d+", version("pip"))[:2]]
    except PackageNotFoundError:
        return False
    is_inside = Path(sys.prefix).resolve() == (Path(__file__).resolve().parents[1] / VENV).resolve()
    return found >= [22, 3] and not is_inside


# If this Python has a usable pip, that pip installs uv into `.venv`. Otherwise `.venv` is created with its own pip,
# which takes seconds. In both cases uv installs the locked pip at the end, for people who use `.venv/bin/pip`.
HAS_PIP = has_usable_pip()
PIP = [sys.executable, "-m", "pip", "--python", str(PYTHON)] if HAS_PIP else [str(PYTHON), "-m", "pip"]


def main(options: list[str]) -> None:
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"onecycle needs Python 3.11 or newer, and {sys.executable} is {found}; try: make PYTHON=python3.12")
    os.chdir(Path(__file__).resolve().parents[1])
    print("Installing into .venv", flush=True)
    dev = "--dev" in options or DEV_STAMP.exists()
    if not STAMP.exists():
        run([sys.executable, "-m", "venv", "--clear", *(["--without-pip"] if HAS_PIP else []), str(VENV)])
    for stamp in (STAMP, DEV_STAMP):
        stamp.unlink(missing_ok=True)
    install_uv()
    uv = Uv(pip_settings())
    if wants_cpu_build(uv):
        install_cpu_build(uv)
    onecycle = ".[dev]" if dev else ".[export,serve]"
    locked = ["--constraint", str(LOCK), "--build-constraint", str(LOCK)]
    uv.pip("install", *locked, "pip", "--editable", onecycle)
    uv.pip("check")
    for stamp in (STAMP, DEV_STAMP) if dev else (STAMP,):
        stamp.touch()


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run `command`, which prints its own errors. If the command fails, exit with its exit code."""
    ended = subprocess.run(command, env=environment)
    if ended.returncode:
        sys.exit(ended.returncode)


def install_uv() -> None:
    """Install the locked version of uv with pip. pip uses its own configuration and checks the hash."""
    locked = re.search(r"^uv==(.|\n(?!\w))+", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert locked, f"{LOCK} does not pin uv"
    only_uv = VENV / "uv.txt"
    only_uv.write_text(locked[0])
    quiet = ["-qq", "--disable-pip-version-check"]
    run([*PIP, "install", *quiet, "--no-deps", "--requirement", str(only_uv)])


def pip_settings() -> dict[str, str]:
    """pip's settings by option name, from its configuration files and `PIP_*` variables. Variables have priority."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True)
    lines = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.+)$", listed.stdout, flags=re.MULTILINE)
    order = ["global", "install", ":env:"]
    return {name: str(ast.literal_eval(value)) for _, name, value in sorted(lines, key=lambda it: order.index(it[0]))}


class Uv:
    """The uv of `.venv`, with pip's settings. The user's environment variables for uv have priority.

    It installs into the environment `venv`.
    """

    def __init__(self, settings: dict[str, str], venv: Path = VENV) -> None:
        self.options: list[str] = []
        if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            self.options.append("--no-index")
        for file in settings.get("constraint", "").split():
            self.options += ["--constraint", file]
        several = {name: settings.get(name, "").split() for name in ("extra-index-url", "find-links", "trusted-host")}
        proxy = settings.get("proxy", "")
        variables = {
            "UV_DEFAULT_INDEX": settings.get("index-url", ""),
            "UV_INDEX": " ".join(several["extra-index-url"]),
            # pip takes the best version of all indexes. By default, uv uses the first index with the package.
            "UV_INDEX_STRATEGY": "unsafe-best-match" if several["extra-index-url"] else "",
            "UV_FIND_LINKS": ",".join(several["find-links"]),
            "UV_INSECURE_HOST": " ".join(several["trusted-host"]),
            "UV_HTTP_TIMEOUT": settings.get("timeout", ""),
            "SSL_CERT_FILE": settings.get("cert", ""),
            "SSL_CLIENT_CERT": settings.get("client-cert", ""),
            "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy,
        }
        passed = {name: value for name, value in variables.items() if value}
        self.environment = {**passed, **os.environ, "VIRTUAL_ENV": str(venv.resolve())}

    def pip(self, command: str, *arguments: str) -> None:
        options = self.options if command == "install" else []
        run([str(UV), "pip", command, "--quiet", *options, *arguments], self.environment)

    def would_install(self, requirement: str) -> str:
        """The packages that installing `requirement` would add, one per line. Empty if it is already installed."""
        command = [str(UV), "pip", "install", "--dry-run", *self.options, requirement]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stderr


def wants_cpu_build(uv: Uv) -> bool:
    """Whether installing torch would also install CUDA packages, which this machine cannot use."""
    if sys.platform != "linux" or has_nvidia_driver() or "UV_TORCH_BACKEND" in os.environ:
        return False
    return bool(re.search(r"^ \+ (nvidia|cuda)-", uv.would_install(TORCH), flags=re.MULTILINE))


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def install_cpu_build(uv: Uv) -> None:
    """Install torch without dependencies from the index of its CPU builds. On failure, print a message and continue."""
    elsewhere = ("UV_INDEX", "UV_FIND_LINKS", "UV_INDEX_STRATEGY")
    environment = {name: value for name, value in uv.environment.items() if name not in elsewhere}
    # One attempt of ten seconds, so that a firewall that drops packets does not delay the installation.
    environment |= {"UV_HTTP_CONNECT_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
    command = [str(UV), "pip", "install", "--quiet", "--no-deps", "--default-index", TORCH_CPU_INDEX, TORCH]
    if subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode:
        print(
            f"cannot install torch's CPU build from {TORCH_CPU_INDEX}; installing the default build, "
            "with several gigabytes of CUDA",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
