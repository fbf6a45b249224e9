"""Several Ray nodes on this machine. Each acts like a machine of its own, and can be killed at any moment."""

import logging
import os
import shutil
import signal
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

# Environment variables that Ray's processes read when they start.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
    "RAY_worker_niceness": "0",  # normal priority, because no other work competes for the cores
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",  # so that a dead node is detected within seconds
    "RAY_health_check_failure_threshold": "3",
}
_OBJECT_STORE_BYTES = 80_000_000


class Nodes:
    """A Ray cluster, as a context manager. The head node does no work. `os.environ` must contain `SETTINGS`."""

    def __enter__(self) -> "Nodes":
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._folder = tempfile.mkdtemp(
            prefix="ray"
        )  # a short path, because the path of a socket has at most 107 characters
        self._cluster = Cluster()
        os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # Ray always stores the address of the cluster there
        self._add(num_cpus=0, include_dashboard=False, temp_dir=self._folder)
        self.address: str = self._cluster.address
        self.workers: list[Any] = []
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self.workers):
            self.kill(node)
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, cores: int = 1) -> Any:
        """Add a node with the given number of cores."""
        self.workers.append(self._add(num_cpus=cores))
        return self.workers[-1]

    def kill(self, node: Any) -> None:
        """Kill the node with all processes on it."""
        (raylet,) = (started.process for started in node.all_processes["raylet"])
        for process in (raylet.pid, *descendants(raylet.pid)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raylet.wait()
        self.workers.remove(node)

    def _add(self, **options: Any) -> Any:
        return self._cluster.add_node(wait=True, object_store_memory=_OBJECT_STORE_BYTES, **options)


def descendants(process: int) -> list[int]:
    """The ids of the children of `process`, of their children, and so on."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process ended before its file was read
            continue
        parents.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
