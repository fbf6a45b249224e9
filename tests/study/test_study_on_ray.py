"""Studies on real Ray nodes: the same run folders as here, also when nodes die and when the study is interrupted."""

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
from onecycle.core.config import RECIPES, Config
from onecycle.core.files import InUseError, locked
from onecycle.study.ray import failure_of
from onecycle.study.run import StudyRun

QUICK = "--no-report --recipe quick --widths 8 8 8 --data digits --limit 60 --batch-size 20 --lr-max 1e-3 --lr-min 1e-4"
PLAIN = f"{QUICK} --workers 0 --device cpu --precision float32 --cores 1"

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
    """What the local engine makes of four short runs."""
    out = tmp_path_factory.mktemp("local")
    assert main(["study", *f"{PLAIN} --epochs 2 --seeds 2 --vary flip=random --out {out}".split()]) == 0
    return only(out)


@pytest.mark.long
def test_a_ray_of_this_machine_makes_the_same_run_folders(local: Path, tmp_path: Path) -> None:
    done = study(PLAIN, "--epochs 2 --seeds 2 --vary flip=random --engine ray --out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    made, expected = contents(only(tmp_path)), contents(local)
    assert made.keys() == expected.keys() and "quick/seed-1/weights.safetensors" in made
    assert made == expected
    summary = json.loads((only(tmp_path) / "summary.json").read_text())
    assert summary["variants"].keys() == {"quick", "flip=random"}
    lines = [line for line in done.stdout.splitlines() if "seed" in line]
    assert sum("begins on" in line for line in lines) == sum("ends on" in line for line in lines) == 4


@pytest.mark.long
def test_a_node_that_shares_no_disk_sends_its_runs(nodes: Nodes, local: Path, tmp_path: Path) -> None:
    """The study's folder is one that only the driver sees: a file system in memory, mounted for it alone."""
    out = tmp_path / "out"
    out.mkdir()
    words = command(
        PLAIN, "--epochs 2 --seeds 2 --vary flip=random --engine ray --address", nodes.address, "--out", out
    )
    alone = f"mount -t tmpfs none {out} && {' '.join(words)} && cp -r {out}/* {tmp_path}/kept"
    (tmp_path / "kept").mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system of its own")
    done = subprocess.run(["unshare", "-m", "sh", "-c", alone], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert contents(only(tmp_path / "kept")) == contents(local)


def begun(path: Path) -> bool:
    return any(path.rglob("checkpoint.safetensors"))


def started(out: Path, *words: object, until: Callable[[Path], bool]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command(*words, "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not until(out):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def long_local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of some seconds."""
    out = tmp_path_factory.mktemp("long")
    assert main(["study", *f"{PLAIN} --epochs 40 --seeds 2 --out {out}".split()]) == 0
    return only(out)


def test_a_run_whose_node_dies_goes_on_elsewhere(nodes: Nodes, long_local: Path, tmp_path: Path) -> None:
    process = started(tmp_path, PLAIN, "--epochs 40 --seeds 2 --engine ray --address", nodes.address, until=begun)
    nodes.kill(nodes.workers[0])
    nodes.add()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "lost with" in out
    assert contents(only(tmp_path)) == contents(long_local)


@pytest.mark.long
def test_ctrl_c_saves_the_runs_which_go_on_here(nodes: Nodes, long_local: Path, tmp_path: Path) -> None:
    process = started(tmp_path, PLAIN, "--epochs 40 --seeds 2 --engine ray --address", nodes.address, until=begun)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    path = only(tmp_path)
    assert process.returncode == 130
    assert err == f"onecycle: interrupted; `onecycle study --resume {path}` goes on\n"
    assert not list(path.glob(".*"))
    assert any((path / "quick").glob("seed-*/checkpoint.safetensors"))
    assert json.loads((path / "study.json").read_text()).keys() == {"config", "seeds", "variants", "threshold", "cores"}
    again = study(PLAIN, "--epochs 40 --seeds 2 --out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert contents(only(tmp_path)) == contents(long_local)


@pytest.mark.long
def test_a_study_whose_process_was_killed_goes_on_there(nodes: Nodes, long_local: Path, tmp_path: Path) -> None:
    process = started(tmp_path, PLAIN, "--epochs 40 --seeds 2 --engine ray --address", nodes.address, until=begun)
    process.kill()
    process.communicate()
    again = study("--resume", only(tmp_path), "--engine ray --address", nodes.address)
    assert again.returncode == 0, again.stderr
    assert contents(only(tmp_path)) == contents(long_local)


def hold(folder: Path) -> None:
    with locked(folder):
        (folder / "held").touch()
        time.sleep(2)


def test_a_run_that_a_worker_given_up_by_ray_is_still_at_work_on_is_waited_for(tmp_path: Path) -> None:
    little = {"limit": 60, "batch_size": 20, "epochs": 1, "lr_max": 1e-3, "lr_min": 1e-4, "workers": 0}
    config = Config.from_json({**RECIPES["quick"].to_json(), "data": "digits", "widths": [8, 8, 8], **little})
    run = StudyRun(name="quick, seed 0", place="1/1", folder=tmp_path / "run", config=config, cores=1)
    run.folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(run.folder,))
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
def test_a_run_that_fails_is_named_and_not_tried_again(nodes: Nodes, tmp_path: Path) -> None:
    options = "--epochs 2 --seeds 1 --vary lr_max=1e30 --engine ray --address"
    done = study(PLAIN, options, nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("onecycle: 1 of 2 runs failed, the first is lr_max=1e+30, seed 0: ")
    assert "not finite" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.count("lr_max=1e+30, seed 0: begins on") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--engine", "ray", "--address", "somewhere:x"], "no Ray cluster answers at somewhere:x"),
        (["--engine", "ray", "--address", "ray://127.0.0.1:10001"], "give host:port"),
        (["--engine", "ray", "--address", "somewhere"], "cannot use the Ray cluster at somewhere"),
        (["--address", "127.0.0.1:9"], "give --engine ray, too"),
        (["--cores", "0"], "--cores is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *PLAIN.removesuffix(" --cores 1").split(), "--out", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_more_cores_than_a_node_has_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    done = study(PLAIN.replace("--cores 1", "--cores 3"), "--engine ray --address", nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "onecycle: a run asks for 3 cores, and no node has more than 1; give --cores 1\n"


@pytest.mark.long
def test_a_gpu_that_no_node_has_is_not_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    done = study(PLAIN.replace("cpu", "cuda"), "--engine ray --address", nodes.address, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "onecycle: --device is cuda, and no node has a GPU that Ray knows of; give --device cpu\n"


def test_more_cores_than_this_machine_has_are_refused_here(tmp_path: Path) -> None:
    done = study(PLAIN.replace("--cores 1", "--cores 999"), "--seeds 1 --out", tmp_path)
    assert done.returncode == 2
    assert "the study's runs compute on 999 cores, and this machine lets them use" in done.stderr


def test_without_ray_it_is_told_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ray'] = sys.modules['pyarrow'] = None\n"
        f"from onecycle.cli import main; sys.exit(main({command(PLAIN, '--engine ray --out', tmp_path)[3:]}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "onecycle: this needs ray and pyarrow; pip install 'onecycle[cluster]'\n"


@pytest.mark.long
def test_runs_that_begin_together_compute_alike(tmp_path: Path) -> None:
    """However the race for the first measuring goes: with a cache of their own, they take one choice."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = command(
        QUICK, "--workers 0 --device cpu --cores 1 --epochs 1 --seeds 2 --engine ray --out", tmp_path / "out"
    )
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = sorted(only(tmp_path / "out").rglob("environment.json"))
    chosen = [json.loads(path.read_text()) for path in runs]
    assert len(chosen) == 2 and chosen[0]["acceleration"] == chosen[1]["acceleration"]
    assert chosen[0]["autotune"] == chosen[1]["autotune"], "one of them measured, and the other took what it found"
    assert np.isfinite(chosen[0]["autotune"][0]["milliseconds"]["float32"])
