"""examples/slurm.sbatch, as it stands, on a Slurm cluster of two nodes."""

import os
import time
from pathlib import Path
from typing import Any

from hosts import INTERFACE
from slurm import Slurm
from small_training import OPTIONS, THREADS, outcome, the_run

BATCH_FILE = Path(__file__).resolve().parents[2] / "examples" / "slurm.sbatch"
PATIENCE = 300  # seconds


def submit(cluster: Slurm, folder: Path, *options: str) -> str:
    """Hand in the batch file from that folder, with options for the training; the job's number."""
    own = (f"--cpus-per-task={THREADS}", BATCH_FILE)
    return cluster.run("sbatch", "--parsable", *own, *options, folder=folder, GLOO_SOCKET_IFNAME=INTERFACE).strip()


def test_a_job_over_two_nodes_comes_to_what_one_machine_does(
    slurm_cluster: Slurm, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = submit(slurm_cluster, tmp_path, *OPTIONS)
    ended = slurm_cluster.end(job, PATIENCE)
    assert ended == "COMPLETED", (tmp_path / f"onecycle-{job}.txt").read_text()
    assert outcome(tmp_path) == undisturbed


def test_a_job_that_is_put_back_into_the_queue_goes_on_where_it_was(
    slurm_cluster: Slurm, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = submit(slurm_cluster, tmp_path, *OPTIONS)
    until = time.monotonic() + PATIENCE
    while (run := the_run(tmp_path)) is None or not run.history.exists():
        assert time.monotonic() < until, (tmp_path / f"onecycle-{job}.txt").read_text()
        time.sleep(0.05)
    slurm_cluster.run("scontrol", "requeue", job)
    ended = slurm_cluster.end(job, PATIENCE)
    assert ended == "COMPLETED", (tmp_path / f"onecycle-{job}.txt").read_text()
    assert outcome(tmp_path) == undisturbed


def test_what_a_job_cannot_do_is_in_its_file_and_the_job_has_failed(slurm_cluster: Slurm, tmp_path: Path) -> None:
    job = submit(slurm_cluster, tmp_path, "--data", os.devnull, "--shards", "2")
    assert slurm_cluster.end(job, PATIENCE) == "FAILED"
    assert os.devnull in (tmp_path / f"onecycle-{job}.txt").read_text()
