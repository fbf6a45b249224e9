import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from onecycle.compute.kernels import native
from onecycle.compute.kernels.batch_norm_activation import BatchNormActivation2d
from onecycle.compute.kernels.max_pool import MaxPool2x2
from onecycle.compute.plan import EAGER, ComputePlan

DTYPES = [torch.float32, torch.bfloat16]  # of the maps that the kernels support
NATIVE = ComputePlan(native_kernels=True)

OF_EACH_DTYPE = ["moments", "scale_shift_activate", "gradient_moments", "input_gradient"]
OF_EACH_DTYPE += ["max_pool", "max_pool_gradient"]
OF_EACH_DTYPE += ["winograd_workspace", "winograd_convolve", "winograd_weight_gradient"]
KERNELS = [f"{name}_{dtype}" for name in OF_EACH_DTYPE for dtype in ("float32", "bfloat16")]
KERNELS += ["has_amx"]
AMX_KERNELS = ["amx_convolve_bfloat16", "amx_weight_gradient_bfloat16"]  # only on a CPU with these extensions


def find_library() -> ctypes.CDLL | None:
    """As `native.compiled`, which caches the library for the life of the process."""
    return native._compiled_or_reason.__wrapped__()[0]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def compiler(native_kernels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler that logs the arguments of each compilation. It is quick, because it does not optimize."""
    script = tmp_path / "logging-cc"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo compiled "$@" >> {tmp_path}/log\nexec cc "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.delenv("ONECYCLE_CFLAGS", raising=False)
    return script


def compilations(tmp_path: Path) -> int:
    return len(arguments_of_compilations(tmp_path))


def arguments_of_compilations(tmp_path: Path) -> list[list[str]]:
    log = tmp_path / "log"
    return [line.split()[1:] for line in log.read_text().splitlines()] if log.exists() else []


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_the_library_is_compiled_once_and_then_loaded_from_the_cache(compiler: Path, tmp_path: Path) -> None:
    for _ in range(2):
        library = find_library()
        assert library is not None
        expected = [*KERNELS, *AMX_KERNELS] if library.has_amx() else KERNELS
        assert all(hasattr(library, name) for name in expected)
        assert compilations(tmp_path) == 1
    (folder,) = (tmp_path / "cache" / "onecycle").iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".so"], "a temporary file is left"


@pytest.mark.parametrize("changed", ["source", "template", "header", "flags", "environment", "compiler"])
def test_another_source_flag_or_compiler_makes_another_library(
    changed: str, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_library() is not None
    before = cached(tmp_path)
    sources = tmp_path / "sources"
    shutil.copytree(native._FOLDER, sources)
    monkeypatch.setattr(native, "_FOLDER", sources)
    assert find_library() is not None
    assert cached(tmp_path) == before, "the folder of the sources must make no difference"
    if changed == "flags":
        monkeypatch.setattr(native, "_FLAGS", [*native._FLAGS, "-DNOTHING"])
    elif changed == "environment":
        monkeypatch.setenv("ONECYCLE_CFLAGS", "-DNOTHING")
    elif changed == "compiler":
        compiler.write_text(compiler.read_text().replace("exec cc", '[ "$1" = --version ] && echo newer; exec cc'))
    else:
        path = sources / {"source": "float32.c", "template": "max_pool.h", "header": "vector.h"}[changed]
        path.write_text(path.read_text() + "\n/* changed */\n")
    assert find_library() is not None
    assert len(cached(tmp_path)) == 2
    assert compilations(tmp_path) == 2


def test_flags_of_the_environment_follow_the_projects_flags(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONECYCLE_CFLAGS", "-O1 -DNAME='a name'")  # the last -O wins, and replaces -O3
    assert find_library() is not None
    ((*arguments,),) = arguments_of_compilations(tmp_path)
    count = len(native._FLAGS)
    assert arguments[:count] == native._FLAGS
    assert arguments[count : count + 3] == ["-O1", "-DNAME=a", "name"]  # the log does not quote


def test_without_flags_of_the_environment_the_compiler_gets_only_the_projects(compiler: Path, tmp_path: Path) -> None:
    assert find_library() is not None
    ((*arguments,),) = arguments_of_compilations(tmp_path)
    *flags, output, _ = [argument for argument in arguments if not argument.endswith(".c")]
    assert [*flags, output] == [*native._FLAGS, "-o"]


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("no-such-compiler", "", "there is no C compiler no-such-compiler"),
        ("false", "", "false fails: exit code 1"),
        ("", "", "$CC or $ONECYCLE_CFLAGS cannot be used: $CC is empty"),
        ("cc", "-no-such-option", "cc fails: cc: error: unrecognized command-line option"),
        ("cc", "'not closed", "$CC or $ONECYCLE_CFLAGS cannot be used: No closing quotation"),
    ],
)
def test_without_a_working_compiler_there_is_no_library_and_the_reason_is_known(
    name: str, flags: str, reason: str, native_kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", name)
    monkeypatch.setenv("ONECYCLE_CFLAGS", flags)
    library, why = native._compiled_or_reason.__wrapped__()
    assert library is None and why.startswith(reason) and why.isprintable()
    assert cached(tmp_path) == []


def test_kernels_are_compiled_elsewhere_if_the_cache_allows_no_libraries(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ctypes.CDLL

    def load_outside_of_the_cache(path: str) -> ctypes.CDLL:
        if path.startswith(str(tmp_path / "cache")):
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", load_outside_of_the_cache)
    assert find_library() is not None


def test_flags_that_an_environment_sets_for_other_builds_are_not_used(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-march=nocona")
    assert find_library() is not None
    assert "-march=nocona" not in arguments_of_compilations(tmp_path)[0]


def test_a_compiler_that_cannot_be_started_makes_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert find_library() is None


def spoil_nothing(home: Path) -> None:
    home.mkdir()
    home.chmod(0o700)


def make_a_file(home: Path) -> None:
    home.touch()


def open_the_home(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)


def open_the_folder(home: Path) -> None:
    (home / "onecycle" / "kernels").mkdir(parents=True)
    (home / "onecycle").chmod(0o770)


def open_the_kernels(home: Path) -> None:
    (home / "onecycle" / "kernels").mkdir(parents=True)
    (home / "onecycle" / "kernels").chmod(0o777)


@pytest.mark.parametrize(
    ("prepare", "times"),
    [(spoil_nothing, 1), (make_a_file, 2), (open_the_home, 2), (open_the_folder, 2), (open_the_kernels, 2)],
)
def test_a_cache_that_others_can_write_to_is_not_used(
    prepare: Callable[[Path], None], times: int, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(home := tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for _ in range(2):
        assert find_library() is not None
    assert compilations(tmp_path) == times
    assert len(list(tmp_path.rglob("*.so"))) == (1 if times == 1 else 0)


def test_only_the_user_can_open_what_is_cached(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "home"))
    before = os.umask(0)
    try:
        assert find_library() is not None
    finally:
        os.umask(before)
    made = list((tmp_path / "new").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_support_only_maps_in_channels_last_layout(dtype: torch.dtype) -> None:
    images = torch.zeros(2, 6, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert native.supports(images)
    assert native.supports(images[1:])
    most = torch.zeros(1, native.MOST_CHANNELS + 1, 1, 1, dtype=dtype)
    assert native.supports(most[:, 1:].clone())
    refused = [images.double(), images.half(), images.int(), images.contiguous(), images[:, :3], images[0]]
    refused += [images[:0], most, images[:1].expand(2, -1, -1, -1), images.to("meta"), images.permute(0, 1, 3, 2)]
    assert not any(native.supports(other) for other in refused)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_is_converted_to_the_layout_of_the_kernels_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    gradient = torch.randn(2, 6, 4, 4, dtype=dtype)
    for given in (gradient, gradient.to(memory_format=torch.channels_last)):
        converted = native.to_kernel_layout(given)
        assert native.supports(converted)
        assert converted.dtype == dtype
        assert torch.equal(converted, gradient)
    assert native.supports(native.to_kernel_layout(torch.ones(1, dtype=dtype).expand(2, 6, 4, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_maps_have_the_layout_of_the_kernels_under_any_default(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        made = native.empty_maps(2, 6, 4, 5, dtype)
    assert made.shape == (2, 6, 4, 5)
    assert made.dtype == dtype
    assert native.supports(made)


FEWER_THREADS = """
import torch
from onecycle.compute.kernels.batch_norm_activation import BatchNormActivation2d
from onecycle.compute.kernels.max_pool import MaxPool2x2
from onecycle.compute.kernels import amx

torch.manual_seed(0)
torch.set_num_threads(4)
for dtype in (torch.float32, torch.bfloat16):
    images = torch.randn(8, 16, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    output = BatchNormActivation2d(16, momentum=1.0).train()
    expected = torch.nn.BatchNorm2d(16, momentum=1.0).train()
    torch.testing.assert_close(MaxPool2x2()(output(images)), torch.nn.MaxPool2d(2)(expected(images).relu()))
    torch.testing.assert_close(output.running_mean, expected.running_mean)
if amx.is_available():
    weight, images = torch.randn(16, 16, 3, 3).bfloat16(), images.detach().repeat(16, 1, 1, 1)
    convolved = amx.convolve(images, weight)
    of_weight = amx.weight_gradient(images, convolved)
    torch.set_num_threads(1)  # with more, PyTorch's own convolution would hang
    expected = torch.nn.functional.conv2d(images, weight, padding=1)
    torch.testing.assert_close(convolved, expected, rtol=0.02, atol=0.1)
    exact = torch.nn.grad.conv2d_weight(images.float(), weight.shape, convolved.float(), padding=1)
    torch.testing.assert_close(of_weight, exact, rtol=1e-3, atol=0.1)
"""


@pytest.mark.parametrize("limit", ["OMP_THREAD_LIMIT=1", pytest.param("OMP_DYNAMIC=true", marks=pytest.mark.long)])
def test_results_are_correct_with_fewer_openmp_threads_than_requested(limit: str, compiler: Path) -> None:
    command = ["env", limit, sys.executable, "-c", FEWER_THREADS]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-600:]


def test_norms_with_relu_and_2x2_pools_are_replaced() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.MaxPool2d(3), nn.BatchNorm2d(4), nn.ReLU()
    )
    network[4].eval()  # a frozen normalization layer
    prepared = NATIVE.prepare(network)
    kinds = [nn.Conv2d, nn.BatchNorm2d, MaxPool2x2, nn.MaxPool2d, BatchNormActivation2d, nn.Identity]
    assert [type(layer) for layer in prepared] == kinds
    assert [layer.training for layer in prepared] == [True, True, True, True, False, False]
    assert prepared[4].running_var is network[4].running_var
    assert list(prepared.state_dict()) == list(network.state_dict())
    assert [type(layer) for layer in EAGER.prepare(network)] == [type(layer) for layer in network]


class Tapped(nn.Sequential):
    """A network that uses the output of its norm twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normal = self[0](images)
        return normal + self[1](normal)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0), nn.ReLU()),
        nn.Sequential(nn.Sequential(nn.Identity(), nn.BatchNorm2d(4)), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.ReLU())),
        nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU()),
        nn.ModuleList([nn.BatchNorm2d(4), nn.ReLU()]),
        Tapped(nn.BatchNorm2d(4), nn.ReLU()),
    ],
    ids=["GELU", "dropout between", "norm in another", "ReLU in another", "not affine", "only a list", "tapped"],
)
def test_a_norm_whose_output_may_go_elsewhere_is_not_replaced(network: nn.Module) -> None:
    prepared = NATIVE.prepare(network)
    assert [type(layer) for layer in prepared.modules()] == [type(layer) for layer in network.modules()]


def test_layers_that_are_used_several_times_compute_the_same() -> None:
    norm, activation, pool = nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    network = nn.Sequential(norm, activation, pool, norm, nn.Sigmoid(), activation, norm, activation, pool).eval()
    norm.running_mean.fill_(0.3)
    images = torch.randn(2, 4, 8, 8)
    assert torch.equal(NATIVE.prepare(network)(images), network(images))
