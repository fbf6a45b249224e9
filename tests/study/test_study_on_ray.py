"""Studies on real Ray nodes make the same run folders as the local engine, even after lost nodes and interruptions."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from local_ray_nodes import Nodes
from rich.console import Console
from studies import contents

from onecycle.cli import main
from onecycle.core.config import Config
from onecycle.core.files import InUseError, locked
from onecycle.core.recipes import RECIPES
from onecycle.study.ray import failure_of
from onecycle.study.run import StudyRun

QUICK = "--no-report --recipe quick --widths 8 8 8 --data digits --limit 60 --batch-size 20 --lr-max 1e-3 --lr-min 1e-4"
FLOAT32 = f"{QUICK} --workers 0 --device cpu --precision float32 --cores 1"

pytestmark = pytest.mark.usefixtures("ray_settings")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "onecycle", "study", *(part for word in words for part in str(word).split())]


def study(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=600)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four short runs by the local engine."""
    out = tmp_path_factory.mktemp("local")
    assert main(["study", *f"{FLOAT32} --epochs 2 --seeds 2 --vary flip=random --out {out}".split()]) == 0
    return only(out)


@pytest.mark.long
def test_ray_on_this_machine_makes_the_same_run_folders(local: Path, tmp_path: Path) -> None:
    done = study(FLOAT32, "--epochs 2 --seeds 2 --vary flip=random --engine ray --out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    made, expected = contents(only(tmp_path)), contents(local)
    assert made.keys() == expected.keys() and "quick/seed-1/weights.safetensors" in made
    assert made == expected
    summary = json.loads((only(tmp_path) / "summary.json").read_text())
    assert summary["variants"].keys() == {"quick", "flip=random"}
    lines = [line for line in done.stdout.splitlines() if "seed" in line]
    assert sum("starts on" in line for line in lines) == sum("ends on" in line for line in lines) == 4


@pytest.mark.long
def test_a_node_that_shares_no_disk_sends_its_runs(nodes: Nodes, local: Path, tmp_path: Path) -> None:
    """The study folder is on a tmpfs that only the driver can see."""
    out = tmp_path / "out"
    out.mkdir()
    words = command(
        FLOAT32, "--epochs 2 --seeds 2 --vary flip=random --engine ray --address", nodes.address, "--out", out
    )
    alone = f"mount -t tmpfs none {out} && {' '.join(words)} && cp -r {out}/* {tmp_path}/kept"
    (tmp_path / "kept").mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount file systems")
    done = subprocess.run(["unshare", "-m", "sh", "-c", alone], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert contents(only(tmp_path / "kept")) == contents(local)


def saved(path: Path) -> bool:
    return any(path.rglob("checkpoint.safetensors"))


def saved_with_both_started(path: Path) -> bool:
    """Whether a checkpoint is saved and both nodes have started a run. Killing either node then interrupts a run."""
    return saved(path) and len(list(path.glob("*/quick/seed-*"))) == 2


def started(out: Path, *words: object, until: Callable[[Path], bool]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command(*words, "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not until(out):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def long_local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study by the local engine, with two runs that take a few seconds."""
    out = tmp_path_factory.mktemp("long")
    assert main(["study", *f"{FLOAT32} --epochs 40 --seeds 2 --out {out}".split()]) == 0
    return only(out)


def test_a_run_whose_node_dies_goes_on_elsewhere(nodes: Nodes, long_local: Path, tmp_path: Path) -> None:
    options = "--epochs 40 --seeds 2 --engine ray --address"
    process = started(tmp_path, FLOAT32, options, nodes.address, until=saved_with_both_started)
    nodes.kill(nodes.workers[0])
    nodes.add()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "lost with" in out
    assert contents(only(tmp_path)) == contents(long_local)


@pytest.mark.long
def test_ctrl_c_saves_the_runs_and_the_local_engine_completes_them(
    nodes: Nodes, long_local: Path, tmp_path: Path
) -> None:
    process = started(tmp_path, FLOAT32, "--epochs 40 --seeds 2 --engine ray --address", nodes.address, until=saved)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    path = only(tmp_path)
    assert process.returncode == 130
    assert err == f"onecycle: interrupted; `onecycle study --resume {path}` continues the study\n"
    assert not list(path.glob(".*"))
    assert any((path / "quick").glob("seed-*/checkpoint.safetensors"))
    assert json.loads((path / "study.json").read_text()).keys() == {"config", "seeds", "variants", "threshold", "cores"}
    again = study(FLOAT32, "--epochs 40 --seeds 2 --out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert contents(only(tmp_path)) == contents(long_local)


@pytest.mark.long
def test_a_study_whose_process_was_killed_resumes_on_ray(nodes: Nodes, long_local: Path, tmp_path: Path) -> None:
    process = started(tmp_path, FLOAT32, "--epochs 40 --seeds 2 --engine ray --address", nodes.address, until=saved)
    process.kill()
    process.communicate()
    again = study("--resume", only(tmp_path), "--engine ray --address", nodes.address)
    assert again.returncode == 0, again.stderr
    assert contents(only(tmp_path)) == contents(long_local)


def hold_lock(folder: Path) -> None:
    with locked(folder):
        (folder / "held").touch()
        time.sleep(2)


def test_a_run_waits_for_a_lost_worker_that_still_holds_its_folder(tmp_path: Path) -> None:
    short = {"limit": 60, "batch_size": 20, "epochs": 1, "lr_max": 1e-3, "lr_min": 1e-4, "workers": 0}
    config = Config.from_json({**RECIPES["quick"].to_json(), "data": "digits", "widths": [8, 8, 8], **short})
    run = StudyRun(name="quick, seed 0", place="1/1", folder=tmp_path / "run", config=config, cores=1)
    run.folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=hold_lock, args=(run.folder,))
    process.start()
    while not (run.folder / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(InUseError):
        run.carry_out(Console(file=StringIO()))
    assert failure_of(run) is None
    process.join()
    assert run.is_done()


@pytest.mark.long
def test_a_run_that_fails_is_named_and_not_repeated(nodes: Nodes, tmp_path: Path) -> None:
    options = "--epochs 2 --seeds 1 --vary lr_max=1e30 --engine ray --address"
    done = study(FLOAT32, options, nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("onecycle: 1 of 2 runs failed; the first is lr_max=1e+30, seed 0: ")
    assert "not finite" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.count("lr_max=1e+30, seed 0: starts on") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--engine", "ray", "--address", "somewhere:x"], "no Ray cluster answers at somewhere:x"),
        (["--engine", "ray", "--address", "ray://127.0.0.1:10001"], "give host:port of the cluster's head"),
        (["--engine", "ray", "--address", "somewhere"], "cannot use the Ray cluster at somewhere"),
        (["--address", "127.0.0.1:9"], "add --engine ray"),
        (["--cores", "0"], "--cores is 0; it must be at least 1"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *FLOAT32.removesuffix(" --cores 1").split(), "--out", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_more_cores_than_a_node_has_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    done = study(FLOAT32.replace("--cores 1", "--cores 3"), "--engine ray --address", nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "onecycle: each run needs 3 cores, but no node has more than 1; use --cores 1\n"


@pytest.mark.long
def test_a_gpu_that_no_node_has_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    done = study(FLOAT32.replace("cpu", "cuda"), "--engine ray --address", nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "onecycle: --device is cuda, but Ray knows no node with a GPU; use --device cpu\n"


def test_more_cores_than_this_machine_has_are_refused(tmp_path: Path) -> None:
    done = study(FLOAT32.replace("--cores 1", "--cores 999"), "--seeds 1 --out", tmp_path)
    assert done.returncode == 2
    assert "the runs of this study use 999 cores, and this process may use" in done.stderr


def test_a_missing_ray_is_reported_with_the_command_that_installs_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ray'] = sys.modules['pyarrow'] = None\n"
        f"from onecycle.cli import main; sys.exit(main({command(FLOAT32, '--engine ray --out', tmp_path)[3:]}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "onecycle: this needs ray and pyarrow; run pip install 'onecycle[cluster]'\n"


@pytest.mark.long
def test_runs_that_start_together_use_the_same_compute_plan(tmp_path: Path) -> None:
    """One run measures the compute plans. The other run waits and reuses the result."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = command(
        QUICK, "--workers 0 --device cpu --cores 1 --epochs 1 --seeds 2 --engine ray --out", tmp_path / "out"
    )
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = sorted(only(tmp_path / "out").rglob("environment.json"))
    chosen = [json.loads(path.read_text()) for path in runs]
    assert len(chosen) == 2 and chosen[0]["compute_plan"] == chosen[1]["compute_plan"]
    assert chosen[0]["autotune"] == chosen[1]["autotune"], "one run measured, and the other reused the result"
    assert np.isfinite(chosen[0]["autotune"][0]["milliseconds"]["float32"])
