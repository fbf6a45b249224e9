"""Several processes on this machine, by torch's own launcher."""

import logging
import os
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from onecycle.compute import hardware
from onecycle.core.errors import InputError
from onecycle.distributed.agreement import require_even


def launch(processes: int, shards: int) -> int:
    """Run this command in so many processes, which share out `shards` and the cores; its exit code.

    Raises:
        InputError: when the shards cannot be shared out evenly, or a process was ended by a signal.
    """
    if processes < 1:
        raise InputError(f"--processes is {processes}; it must be at least 1")
    require_even(shards, processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.usable_cores() // processes)))
    logging.disable()  # the processes say what is to be said
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
            raise InputError(
                f"rank {rank} (process {first.pid}) was ended by {signal.Signals(-first.exitcode).name}; "
                "`onecycle train --resume` with the run's folder goes on from where it was saved last"
            ) from failed
        return int(first.exitcode)
    return 0
