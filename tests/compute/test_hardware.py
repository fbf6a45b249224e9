import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onecycle.compute import hardware
from onecycle.compute.hardware import Hardware, detect, peak_memory_gib, usable_cores


def run_python(code: str) -> list[float]:
    """The numbers that `code` prints in a new process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def test_the_number_of_usable_cores_is_at_most_that_of_the_machine() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_process_bound_to_one_core_uses_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}) if hasattr(os, 'sched_setaffinity') "
    code += "else None; import onecycle.compute.hardware as h; print(h.usable_cores())"
    assert run_python(code) == [1 if hasattr(os, "sched_setaffinity") else usable_cores()]


QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("cgroup", "quota", "cores"),
    [
        ({}, float("inf"), 8),
        ({"cpu.max": "max 100000\n"}, float("inf"), 8),
        ({"cpu.max": "150000 100000\n"}, 1.5, 1),
        ({"cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"cpu.max": "300000 50000\n"}, 6, 6),
        ({"cpu.max": "1600000 100000\n"}, 16, 8),
        ({"cpu.max": ""}, float("inf"), 8),
        ({"cpu.max": "many few\n"}, float("inf"), 8),
        ({"cpu.max": "100000 0\n"}, float("inf"), 8),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, float("inf"), 8),
        ({QUOTA: "300000\n", PERIOD: "100000\n"}, 3, 3),
        ({QUOTA: "50000\n", PERIOD: "100000\n"}, 0.5, 1),
        ({QUOTA: "300000\n"}, float("inf"), 8),
        ({QUOTA: "many\n", PERIOD: "100000\n"}, float("inf"), 8),
        ({"cpu.max": "200000 100000\n", QUOTA: "300000\n", PERIOD: "100000\n"}, 2, 2),
    ],
)
def test_the_quota_of_a_container_limits_8_cores_rounded_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: dict[str, str], quota: float, cores: int
) -> None:
    folder = tmp_path / "sys" / "fs" / "cgroup"
    (folder / "cpu").mkdir(parents=True)
    for name, content in cgroup.items():
        (folder / name).write_text(content)
    assert hardware._cpu_quota(folder) == quota
    # Simulate a machine with 8 cores. Its system files are under `tmp_path`.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("requested", "cores"), [("", 8), ("3", 3), ("8", 8), ("64", 8), ("0", 8), ("-2", 8), ("many", 8), ("1.5", 8)]
)
def test_omp_num_threads_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setenv("OMP_NUM_THREADS", requested)
    assert usable_cores() == cores


def test_detecting_twice_gives_equal_hardware_also_through_json() -> None:
    found = detect()
    assert found == detect() == Hardware(**json.loads(json.dumps(found.to_json())))


def test_the_detected_hardware_is_that_of_this_machine() -> None:
    found = detect()
    assert found.cpu
    assert found.cores == usable_cores()
    assert found.memory_gib > 0.1
    assert (found.gpu is None) == (found.gpu_kind is None)
    assert (found.gpu_kind == "cuda") == torch.cuda.is_available()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = set(re.findall(r"\b(?:amx_bf16|avx512_bf16)\b", file.read()))
        assert found.fast_bfloat16 == bool(flags)


def test_the_peak_memory_grows_with_an_allocation_and_does_not_fall_when_it_is_freed() -> None:
    before, held, after = run_python("""if True:
        from onecycle.compute.hardware import peak_memory_gib
        print(before := peak_memory_gib())
        block = b"1" * int((before + 0.1) * 2**30)  # above the peak so far
        print(peak_memory_gib())
        del block
        print(peak_memory_gib())
    """)
    assert 0 < before < before + 0.09 <= held < detect().memory_gib
    assert after == pytest.approx(held, abs=0.011)  # Linux counts pages to about 1 MiB, which may change the last digit
    assert peak_memory_gib() > 0


def test_the_peak_memory_of_a_process_does_not_include_its_parent() -> None:
    parent, child = run_python("""if True:
        import subprocess, sys
        block = b"1" * 2**30
        print(1.0, flush=True)
        code = "from onecycle.compute.hardware import peak_memory_gib; print(peak_memory_gib())"
        subprocess.run([sys.executable, "-c", code], check=True)
    """)
    assert child < parent
