"""Start processes as torchrun does, and call a function in each of them."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

from onecycle.core.errors import OnecycleError, ReportedElsewhere
from onecycle.core.signals import watched
from onecycle.distributed import heartbeat, process_group

PATIENCE = 60.0  # seconds to wait for each result
SILENT = "reported elsewhere"  # the result of a process that leaves the error to the main process
_context = multiprocessing.get_context("forkserver")


def in_processes(
    count: int,
    work: Callable[..., Any],
    *arguments: Any,
    silent_seconds: float = 8.0,  # the default outside tests is 55
    environment: Mapping[str, str] = MappingProxyType({}),
    wanted: Collection[int] | None = None,
) -> list[Any]:
    """Call `work` with the process group and `arguments` in each of `count` processes. Returns one result per rank.

    A result is the value that `work` returns, the error that the process reports, or `SILENT`. It is None if the
    process was killed, or does not answer for `PATIENCE` seconds. If only the results of the ranks `wanted` are needed,
    the others are None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        receiver, sender = _context.Pipe(duplex=False)
        described = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in described.items()} | dict(environment)
        task = (variables, sender, silent_seconds, work, arguments)
        processes.append(_context.Process(target=_one, args=task))
        pipes.append(receiver)
        processes[-1].start()
        sender.close()
    results: list[Any] = []
    for rank, pipe in enumerate(pipes):
        result = None
        if wanted is None or rank in wanted:
            with suppress(EOFError):  # the process was killed
                if pipe.poll(PATIENCE):
                    result = pipe.recv()
        results.append(result)
    for process in processes:
        process.kill()
        process.join()
    return results


def _one(
    variables: dict[str, str], sender: Connection, silent_seconds: float, work: Callable[..., Any], arguments: Any
) -> None:
    os.environ |= variables
    heartbeat.SILENT_SECONDS = silent_seconds
    heartbeat.HEARTBEAT_SECONDS = min(heartbeat.HEARTBEAT_SECONDS, silent_seconds / 8)
    try:
        with watched(), process_group.init() as group:
            sender.send(work(group, *arguments))
            time.sleep(PATIENCE)
    except OnecycleError as error:
        sender.send(f"{type(error).__name__}: {error}")
    except ReportedElsewhere:
        sender.send(SILENT)
    time.sleep(PATIENCE)  # wait to be killed: rank 0 hosts the TCP store, so it must not end first
