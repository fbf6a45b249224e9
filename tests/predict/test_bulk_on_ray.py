"""Bulk prediction on real Ray nodes predicts each image once, even if a node or the command itself is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from local_ray_nodes import Nodes
from photographs import PHOTOGRAPHS
from PIL import Image

from onecycle.cli import main

MANY = 3000
UNREADABLE = {"0007.png", "1500.png"}

pytestmark = pytest.mark.usefixtures("ray_settings")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for number in range(MANY):
        pixels = PHOTOGRAPHS[number % 8] + rng.integers(-20, 20, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.png", compress_level=1)
    for name in UNREADABLE:
        (folder / name).write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a bulk prediction by the local engine."""
    out = tmp_path_factory.mktemp("local")
    assert main(["predict", str(images), "--out", str(out)]) == 2
    return out


def command(images: Path, out: Path, nodes: Nodes) -> list[str]:
    words = ["predict", str(images), "--out", str(out), "--engine", "ray", "--address", nodes.address]
    return [sys.executable, "-m", "onecycle", *words]


def started(images: Path, out: Path, nodes: Nodes) -> subprocess.Popen[str]:
    """Start a bulk prediction on Ray. Returns its process as soon as the first chunk is written."""
    process = subprocess.Popen(command(images, out, nodes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not chunk_files(out):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


def chunk_files(out: Path) -> list[Path]:
    return list(out.glob("predictions/part-*.parquet"))


def require_same(out: Path, local: Path, images: Path) -> None:
    """Check that every image is predicted once, and that the results are bit-identical to those of the local engine."""
    files = (
        pq.read_table(out / "predictions")["file"].to_pylist() + pq.read_table(out / "unreadable")["file"].to_pylist()
    )
    assert sorted(files) == sorted(map(str, images.iterdir()))
    assert {Path(file).name for file in pq.read_table(out / "unreadable")["file"].to_pylist()} == UNREADABLE
    for table in ("predictions", "unreadable"):
        assert pq.read_table(out / table).equals(pq.read_table(local / table))


def test_a_node_that_dies_loses_no_image_and_duplicates_none(
    nodes: Nodes, images: Path, local: Path, tmp_path: Path
) -> None:
    process = started(images, tmp_path, nodes)
    nodes.kill(nodes.workers[0])
    out, err = process.communicate(timeout=600)
    nodes.add()
    assert process.returncode == 2, err
    assert out == f"the results of {MANY:,} images are in {tmp_path}\n"
    require_same(tmp_path, local, images)


@pytest.mark.long
def test_a_killed_command_goes_on(nodes: Nodes, images: Path, local: Path, tmp_path: Path) -> None:
    process = started(images, tmp_path, nodes)
    process.kill()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in chunk_files(tmp_path)}
    assert 0 < len(done) < 3
    again = subprocess.run(command(images, tmp_path, nodes), capture_output=True, text=True, timeout=600)
    assert again.returncode == 2, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done, "no chunk was predicted again"
    require_same(tmp_path, local, images)


@pytest.mark.long
def test_ctrl_c_prints_how_to_go_on_and_any_engine_can(nodes: Nodes, images: Path, local: Path, tmp_path: Path) -> None:
    process = started(images, tmp_path, nodes)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "onecycle: interrupted; repeat the command to go on"
    assert len(chunk_files(tmp_path)) < 3
    assert main(["predict", str(images), "--out", str(tmp_path)]) == 2
    require_same(tmp_path, local, images)


@pytest.mark.long
def test_ray_on_this_machine_predicts_without_a_cluster(images: Path, tmp_path: Path) -> None:
    few = [str(path) for path in sorted(images.iterdir())[:9]]
    words = [sys.executable, "-m", "onecycle", "predict", *few, "--engine", "ray", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert "1 of 9 images could not be read" in done.stderr
    assert pq.read_table(tmp_path / "predictions").num_rows == 8
