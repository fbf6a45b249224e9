"""Several Ray nodes on this machine, each like a machine of its own: it can be gone from one moment to the next."""

import logging
import os
import shutil
import signal
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

# Read by Ray's processes as they start.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
    "RAY_worker_niceness": "0",  # nothing else computes meanwhile
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",  # so that a dead node is noticed within seconds
    "RAY_health_check_failure_threshold": "3",
}
_OBJECT_STORE_BYTES = 80_000_000


class Nodes:
    """A cluster whose head computes nothing; a context manager. `os.environ` must have `SETTINGS`."""

    def __enter__(self) -> "Nodes":
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._folder = tempfile.mkdtemp(prefix="ray")  # a short name: sockets in it may have 107 characters
        self._cluster = Cluster()
        os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # Ray notes a cluster's address there, wherever it is
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
        """Another node with so many cores."""
        self.workers.append(self._add(num_cpus=cores))
        return self.workers[-1]

    def kill(self, node: Any) -> None:
        """Let the node and all that runs on it vanish."""
        (raylet,) = (started.process for started in node.all_processes["raylet"])
        for process in (raylet.pid, *descendants(raylet.pid)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raylet.wait()
        self.workers.remove(node)

    def _add(self, **options: Any) -> Any:
        return self._cluster.add_node(wait=True, object_store_memory=_OBJECT_STORE_BYTES, **options)


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
