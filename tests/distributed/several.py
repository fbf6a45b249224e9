"""Functions that are called in several processes at once, as torchrun would start them."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

from onecycle.core.errors import InputError, Silent
from onecycle.core.signals import watched
from onecycle.distributed import peers, ranks

PATIENCE, SOON = 60.0, 5.0  # seconds
_context = multiprocessing.get_context("forkserver")


def in_processes(
    count: int,
    work: Callable[..., Any],
    *arguments: Any,
    silent_seconds: float = 8.0,  # for 55, so that all of it takes a few
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """What `work` returns in each process, by rank: its value, or the text of the error that is told for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        receiver, sender = _context.Pipe(duplex=False)
        told_by_torchrun = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in told_by_torchrun.items()} | dict(environment)
        task = (variables, sender, silent_seconds, work, arguments)
        processes.append(_context.Process(target=_one, args=task))
        pipes.append(receiver)
        processes[-1].start()
        sender.close()
    told: list[Any] = []
    for pipe in pipes:
        answer = None
        with suppress(EOFError):  # it was killed
            if pipe.poll(SOON if told else PATIENCE):  # one that was stopped never answers
                answer = pipe.recv()
        told.append(answer)
    for process in processes:
        process.kill()
        process.join()
    return told


def _one(
    variables: dict[str, str], sender: Connection, silent_seconds: float, work: Callable[..., Any], given: Any
) -> None:
    os.environ |= variables
    peers.SILENT_SECONDS, peers.BEAT_SECONDS = silent_seconds, min(peers.BEAT_SECONDS, silent_seconds / 8)
    try:
        with watched(), ranks.joined():
            sender.send(work(*given))
            time.sleep(PATIENCE)
    except InputError as error:
        sender.send(f"told: {error}")
    except Silent:
        sender.send("silent")
    time.sleep(PATIENCE)  # until it is killed: the first has the store, and may not go before the others
