import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onecycle.compute.kernels import native, variants

USE_KERNELS = """
import sys
from pathlib import Path
import torch
from onecycle.compute.kernels import native, variants, winograd
native._FOLDER = Path(sys.argv[1])
assert native.compiled()._name == sys.argv[2], native.compiled()._name
images = torch.randn(4, 24, 9, 9).contiguous(memory_format=torch.channels_last)
weight = torch.randn(40, 24, 3, 3)
expected = torch.nn.functional.conv2d(images, weight, padding=1)
torch.testing.assert_close(winograd.convolve(images, weight), expected, rtol=1e-3, atol=1e-3)
print(native.build_id())
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if platform.machine() not in variants.VARIANTS or sys.platform != "linux":
        pytest.skip("wheels have kernels only for Linux on x86-64 and Arm CPUs")
    if native.compiled() is None:
        pytest.skip("there is no C compiler with OpenMP")
    folder = tmp_path_factory.mktemp("kernels") / variants.FOLDER
    folder.mkdir()
    return variants.compile_all(folder)


def test_every_variant_of_this_machine_compiles(compiled: list[Path]) -> None:
    assert [path.stem for path in compiled] == list(variants.VARIANTS[platform.machine()])


def test_the_variants_need_no_library_but_an_old_glibc(compiled: list[Path]) -> None:
    for path in compiled:
        code = path.read_bytes()
        assert b"libgomp" not in code and b"libm.so" not in code
        assert max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", code)) <= 17


def test_without_a_compiler_the_best_variant_for_the_cpu_is_used(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    shutil.copytree(compiled[0].parent, tmp_path / variants.FOLDER)
    usable = [tmp_path / variants.FOLDER / path.name for path in compiled if supported(path.stem)]
    assert usable, "this CPU supports no variant"
    for best in usable:
        ran = subprocess.run(
            [sys.executable, "-c", USE_KERNELS, best.parents[1], best],
            capture_output=True,
            text=True,
            timeout=120,
            env=dict(os.environ),
        )
        assert ran.returncode == 0, ran.stderr[-800:]
        assert ran.stdout.startswith(f"{best.stem} ")
        best.unlink()  # then the next one is the best


def supported(name: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return all(capabilities.get(each) for each in variants.VARIANTS[platform.machine()][name].requires)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="every Arm CPU supports the only variant")
def test_a_variant_that_the_cpu_does_not_support_is_not_loaded(
    compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_FOLDER", compiled[0].parents[1])
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native._compiled_or_reason.__wrapped__()[0] is not None
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert native._compiled_or_reason.__wrapped__()[0] is None


def test_a_damaged_variant_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / variants.FOLDER
    folder.mkdir()
    for name in variants.VARIANTS.get(platform.machine(), {}):
        (folder / f"{name}.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native._compiled_or_reason.__wrapped__()[0] is None


def test_a_compiler_is_preferred_because_it_compiles_for_this_very_cpu(compiled: list[Path]) -> None:
    loaded = native.compiled()
    assert loaded is not None and Path(loaded._name).parent.name == "kernels"
