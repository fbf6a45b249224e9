"""Tests of the unchanged examples/slurm.sbatch on a Slurm cluster of two nodes."""

import os
import time
from pathlib import Path
from typing import Any

from hosts import INTERFACE
from slurm import Slurm
from small_training import OPTIONS, THREADS, outcome, the_run

BATCH_FILE = Path(__file__).resolve().parents[2] / "examples" / "slurm.sbatch"
PATIENCE = 300  # seconds to wait for a job


def submit(cluster: Slurm, folder: Path, *options: str) -> str:
    """Submit the batch file in `folder`, with `options` for the training. Returns the job number."""
    own = (f"--cpus-per-task={THREADS}", BATCH_FILE)
    return cluster.run("sbatch", "--parsable", *own, *options, folder=folder, GLOO_SOCKET_IFNAME=INTERFACE).strip()


def test_a_job_on_two_nodes_has_the_result_of_one_machine(
    slurm_cluster: Slurm, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = submit(slurm_cluster, tmp_path, *OPTIONS)
    ended = slurm_cluster.end(job, PATIENCE)
    assert ended == "COMPLETED", (tmp_path / f"onecycle-{job}.txt").read_text()
    assert outcome(tmp_path) == undisturbed


def test_a_requeued_job_resumes(slurm_cluster: Slurm, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    job = submit(slurm_cluster, tmp_path, *OPTIONS)
    until = time.monotonic() + PATIENCE
    while (run := the_run(tmp_path)) is None or not run.history.exists():
        assert time.monotonic() < until, (tmp_path / f"onecycle-{job}.txt").read_text()
        time.sleep(0.05)
    slurm_cluster.run("scontrol", "requeue", job)
    ended = slurm_cluster.end(job, PATIENCE)
    assert ended == "COMPLETED", (tmp_path / f"onecycle-{job}.txt").read_text()
    assert outcome(tmp_path) == undisturbed


def test_a_job_with_bad_input_fails_with_the_error_in_its_output_file(slurm_cluster: Slurm, tmp_path: Path) -> None:
    job = submit(slurm_cluster, tmp_path, "--data", os.devnull, "--shards", "2")
    assert slurm_cluster.end(job, PATIENCE) == "FAILED"
    assert os.devnull in (tmp_path / f"onecycle-{job}.txt").read_text()
