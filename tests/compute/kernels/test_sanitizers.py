"""Run check_kernels.c: the C kernels under sanitizers, with each length of vectors, and emulated on another CPU."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from onecycle.compute.kernels import native

KERNELS = Path(native.__file__).parent
SOURCES = [Path(__file__).with_name("check_kernels.c"), KERNELS / "float32.c", KERNELS / "bfloat16.c"]
SEED = 1
SANITIZE = ["-O1", "-g", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TARGETS = ["native", "x86-64-v3", "x86-64"] if platform.machine() == "x86_64" else ["native"]

# Threads wait without spinning, because some tests use more threads than there are cores. The kernels allocate
# nothing, and the search for leaks fails in containers that forbid ptrace.
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "passive", "ASAN_OPTIONS": "detect_leaks=0"}


def compiled(command: list[str], sources: Iterable[Path], program: Path) -> subprocess.CompletedProcess[str]:
    """The result of compiling `sources` to `program`."""
    command = [*command, f"-I{KERNELS}", *map(str, sources), "-o", str(program), "-lm"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def check_kernels(command: list[str], folder: Path, *, shapes: int, emulator: tuple[str, ...] = ()) -> None:
    """Compile and run check_kernels.c. Skip the test if `command` compiles no program at all."""
    trivial, program = folder / "trivial.c", folder / "check_kernels"
    trivial.write_text("int main(void) { return 0; }\n")
    attempt = compiled(command, [trivial], folder / "trivial")
    if attempt.returncode:
        pytest.skip(f"{' '.join(command)} compiles nothing here: {attempt.stderr.strip().splitlines()[-1]}")
    result = compiled(command, SOURCES, program)
    assert result.returncode == 0, result.stderr
    result = subprocess.run(
        [*emulator, str(program), str(SEED), str(shapes)], capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "shapes agree" in result.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_are_correct_and_stay_in_their_buffers(target: str, tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    if target == "x86-64-v3" and not torch.cpu.get_capabilities().get("avx2"):
        pytest.skip("this CPU has no AVX2")
    check_kernels(["cc", *SANITIZE, f"-march={target}"], tmp_path, shapes=25)


def test_the_kernels_are_correct_on_an_emulated_arm_cpu(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator or not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("this needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user")
    check_kernels(["aarch64-linux-gnu-gcc", "-static", "-O2", "-fopenmp"], tmp_path, shapes=5, emulator=(emulator,))
