"""Connect to a Ray cluster, or start Ray on this machine."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from onecycle.compute import hardware
from onecycle.core.errors import InputError
from onecycle.core.extras import require

_ANSWER_SECONDS = 10  # how long to wait for the answer of a cluster
_OBJECT_STORE_BYTES = 200_000_000  # size of the store if Ray starts on this machine; onecycle stores very little

# Ray reads these environment variables on import. Variables that the user has set keep their values.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray must not send usage statistics to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns if this is unset; 0 will become the default
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # onecycle draws its own progress bar
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # connect only once; the next line sets the timeout
    "RAY_py_gcs_connect_timeout_s": str(_ANSWER_SECONDS),
}


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect Ray to a cluster when the block begins, and disconnect it when the block ends.

    The cluster is at `address` or, if `address` is None, at `$RAY_ADDRESS`. If both are missing, Ray starts on this
    machine.

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
        # Ray must not print messages about its nodes to standard output. Its log files contain these messages, too.
        ray._private.worker._worker_logs_enabled = False
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot use the Ray cluster at {address} ({reason[:200]}); check that it is up, runs Ray "
            f"{ray.__version__}, has this machine as a node, and accepts your token ($RAY_AUTH_MODE)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def one_line(error: Exception) -> str:
    """Describe an error from Ray in one line.

    If a task raised an error, the line contains the start of the task's message. Otherwise it contains the end of Ray's
    message.
    """
    cause = getattr(error, "cause", None)
    text = " ".join(str(cause or error).split())
    return f"{type(cause or error).__name__} ({text[:200] if cause else text[-200:]})"


def _require_listener(address: str) -> None:
    """Raise InputError if nothing listens at `address`. Ray would try for two minutes, then print a page of text."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise InputError(
            f"--address is {address}; give host:port of the cluster's head, and run this command on a cluster node"
        )
    if not colon:  # the address is "local" or "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or check --address"
        ) from error
