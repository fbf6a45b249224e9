"""A connection to Ray, begun and ended; the one place that says where a cluster is and what may go wrong there."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from onecycle.compute import hardware
from onecycle.core.errors import InputError
from onecycle.core.extras import require

_ANSWER_SECONDS = 10  # in which a cluster must answer
_OBJECT_STORE_BYTES = 200_000_000  # of a Ray of this machine alone, through which next to nothing goes

# Read by Ray as it is imported. A value of the user's wins.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that it will do so one day
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the screen is ours
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # to connect: each takes as long as below
    "RAY_py_gcs_connect_timeout_s": str(_ANSWER_SECONDS),
}


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Inside, Ray can be used: the cluster at `address` or `$RAY_ADDRESS`, else one of this machine's cores alone.

    Raises:
        InputError: when Ray is not installed, or the cluster cannot be reached.
    """
    require("cluster", "ray", "pyarrow")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    alone = {
        "num_cpus": hardware.usable_cores(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    _require_listener(address)
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR, **(alone if address == "local" else {})
        )
        # It would print to standard output, in colours, what happens to nodes; its logs have that, too.
        ray._private.worker._worker_logs_enabled = False
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot use the Ray cluster at {address} ({reason[:200]}); is it up, of Ray {ray.__version__}, is this "
            "machine one of its nodes, and does it take your token ($RAY_AUTH_MODE)?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def in_a_line(error: Exception) -> str:
    """What one of Ray's errors says: how what a task met begins; of Ray's own account the end, which tells why."""
    cause = getattr(error, "cause", None)
    said = " ".join(str(cause or error).split())
    return f"{type(cause or error).__name__} ({said[:200] if cause else said[-200:]})"


def _require_listener(address: str) -> None:
    """Ray itself would try for two minutes, and write a page about it."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise InputError(f"--address is {address}; give host:port of the cluster's head, from one of its nodes")
    if not colon:  # "local" or "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or check --address"
        ) from error
