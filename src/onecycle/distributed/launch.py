"""Start several training processes on this machine.

The processes find each other through a file in a folder that belongs to this user alone, and exchange tensors through
the loopback interface. torchrun would instead listen at a port, and unpickle what any local user writes there.
"""

import logging
import os
import signal
import sys
import tempfile

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

from onecycle.compute import hardware
from onecycle.core.errors import InputError, PeerError
from onecycle.distributed import job
from onecycle.distributed.consistency import require_divisible
from onecycle.distributed.network_interfaces import loopback_interface

_POLL_SECONDS = 0.1  # the launcher waits this long between two checks of the processes


def launch(processes: int, shards: int) -> int:
    """Run this command in several processes, and return the exit code.

    The `processes` processes share the cores, and each of them gets an equal part of the `shards` shards.

    Raises:
        InputError: when `processes` is less than 1 or does not divide `shards`.
        PeerError: when a signal ended a process.
    """
    if processes < 1:
        raise InputError(f"--processes is {processes}; it must be at least 1")
    require_divisible(shards, processes)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, hardware.usable_cores() // processes)))
    logging.disable()  # silences the launcher, because the processes report their own errors
    with tempfile.TemporaryDirectory(prefix="onecycle-") as folder:  # only this user can read it and write into it
        described = {
            "WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": threads,
            job.STORE_FILE: os.path.join(folder, "store"),
            "GLOO_SOCKET_IFNAME": loopback_interface(),
        }
        started = start_processes(
            "onecycle",
            sys.executable,
            args={rank: ("-m", "onecycle", *sys.argv[1:]) for rank in range(processes)},
            envs={rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), **described} for rank in range(processes)},
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            result = started.wait(period=_POLL_SECONDS)
        except SignalException as stopped:
            started.close(stopped.sigval)
            return 128 + stopped.sigval
    if not (result and result.is_failed()):
        return 0
    first = min(result.failures.values(), key=lambda failure: failure.timestamp)
    if first.exitcode < 0:
        raise PeerError(
            f"{signal.Signals(-first.exitcode).name} ended rank {first.local_rank} (process {first.pid}); "
            "`onecycle train --resume` with the run folder continues from the last checkpoint"
        )
    return int(first.exitcode)
