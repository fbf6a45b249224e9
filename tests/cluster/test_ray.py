"""Studies and predictions on three Ray nodes, and `ray up` with the unchanged examples/ray-cluster.yaml."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
from hosts import Host
from ray_nodes import PORT, Operator
from small_training import SMALL, THREADS

RayCluster = tuple[list[Host], str]

CLUSTER_FILE = Path(__file__).resolve().parents[2] / "examples" / "ray-cluster.yaml"
PATIENCE = 300  # time limit of a command, in seconds

# The program waits for all nodes. Then it runs one task on each node. A task takes all cores of its node.
WHERE = """
import os, socket, sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
nodes = int(sys.argv[2])
until = time.monotonic() + 120
while len([node for node in ray.nodes() if node["Alive"]]) < nodes and time.monotonic() < until:
    time.sleep(0.2)
@ray.remote(num_cpus=os.cpu_count())
def here():
    time.sleep(2)
    return socket.gethostname(), os.environ["OMP_NUM_THREADS"]
print("found", *sorted(":".join(found) for found in ray.get([here.remote() for _ in range(nodes)])))
"""


def study(host: Host, out: Path, *options: str) -> dict[str, Any]:
    """Run a small study on `host`, and return its summary without durations."""
    out.mkdir()
    command = [sys.executable, "-m", "onecycle", "study", *SMALL, "--epochs", "3", "--seeds", "3", *options]
    host.run(*command, folder=out, environment={"OMP_NUM_THREADS": str(THREADS)}, seconds=PATIENCE)
    (summary,) = out.rglob("summary.json")
    return {name: without_times(variant) for name, variant in json.loads(summary.read_text())["variants"].items()}


def without_times(variant: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variant.items() if "seconds" not in name}


def test_a_study_on_three_nodes_has_the_result_of_one_machine(ray_cluster: RayCluster, tmp_path: Path) -> None:
    hosts, address = ray_cluster
    alone = study(hosts[0], tmp_path / "alone")
    assert study(hosts[0], tmp_path / "ray", "--engine", "ray", "--address", address) == alone


def test_predictions_on_three_nodes_are_written_into_a_folder(
    ray_cluster: RayCluster, tmp_path: Path, image_folder: Path
) -> None:
    hosts, address = ray_cluster
    command = [sys.executable, "-m", "onecycle", "predict", image_folder / "test", "--out"]
    hosts[0].run(*command, tmp_path / "here", seconds=PATIENCE)
    hosts[0].run(*command, tmp_path / "there", "--engine", "ray", "--address", address, seconds=PATIENCE)
    there, here = (pyarrow.parquet.read_table(tmp_path / name / "predictions") for name in ("there", "here"))
    assert there.num_rows == len(list((image_folder / "test").rglob("*.png")))
    assert there.equals(here)


def test_ray_up_starts_all_machines_of_the_cluster_file_and_ray_down_ends_them(operator: Operator) -> None:
    operator.run("ray", "up", "--yes", CLUSTER_FILE, RAY_UP_enable_autoscaler_v2="0")
    found = operator.run(sys.executable, "-c", WHERE, f"{operator.host.address}:{PORT}", "3").splitlines()[-1]
    assert found == "found " + " ".join(f"node{i}:{os.cpu_count()}" for i in (1, 2, 3))
    operator.run("ray", "down", "--yes", CLUSTER_FILE)
    assert "gcs_server" not in operator.host.run("ps", "-e", "-o", "comm=")
