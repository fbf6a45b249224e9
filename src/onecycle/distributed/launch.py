"""Start several training processes on this machine with torch's own launcher."""

import logging
import os
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from onecycle.compute import hardware
from onecycle.core.errors import InputError, PeerError
from onecycle.distributed.consistency import require_divisible


def launch(processes: int, shards: int) -> int:
    """Run this command in `processes` processes, which share the cores and the `shards` shards. Returns the exit code.

    Raises:
        InputError: unless `processes` is positive and divides `shards`.
        PeerError: when a signal ended a process.
    """
    if processes < 1:
        raise InputError(f"--processes is {processes}; it must be at least 1")
    require_divisible(shards, processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.usable_cores() // processes)))
    logging.disable()  # silences the launcher, because the processes report their own errors
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "onecycle", *sys.argv[1:])
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode < 0:
            raise PeerError(
                f"{signal.Signals(-first.exitcode).name} ended rank {rank} (process {first.pid}); "
                "`onecycle train --resume` with the run folder continues from the last checkpoint"
            ) from failed
        return int(first.exitcode)
    return 0
