"""A pool of processes that decode images. A process is ended and replaced if its image takes too long."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from onecycle.core.errors import InputError
from onecycle.serve.batching import BusyError
from onecycle.serve.decoder import READY, REQUEST, RESPONSE
from onecycle.serve.limits import Limits

PROCESSES = 2
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no SIGKILL; SIGTERM has the same effect there


class Decoders:
    """Processes that decode images to uint8 `[size,size,3]`. Each process decodes one image at a time.

    They are not threads, because a thread cannot be ended, and its memory and time cannot be limited.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self._size = size
        self._limits = limits
        # The process that became free last is used first, because its code is in the CPU's caches. None stands for a
        # process that must be started before it is used.
        self._free: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        self._processes: set[Process] = set()  # includes processes that are ending
        self._waiting = 0  # number of images that wait for a process
        self._began: dict[asyncio.Timeout, float] = {}  # for the deadline of each decoding: when the decoding began

    async def start(self) -> None:
        """Start the processes.

        Raises:
            BusyError: when a process does not start.
        """
        for process in await asyncio.gather(*(self._start() for _ in range(PROCESSES))):
            self._free.put_nowait(process)

    async def stop(self) -> None:
        """End the processes. No image can be decoded any more."""
        for process in self._processes:
            _end(process)
        for process in self._processes:
            await process.wait()

    async def decode(self, content: bytes) -> NDArray[np.uint8]:
        """The image in the `content` of a file.

        Raises:
            InputError: when the image cannot be used, or takes too long.
            BusyError: when the image takes long while other images wait, or when a process does not start.
        """
        if self._free.empty():
            for deadline, began in self._began.items():
                if not deadline.expired():
                    deadline.reschedule(began + self._limits.busy_decode_seconds)
        self._waiting += 1
        try:
            process = await self._free.get()
        finally:
            self._waiting -= 1
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            is_decoded, answer = await self._ask(process, content)
        except BaseException:  # this includes a cancellation, after which nobody waits for the image any more
            if process:
                _end(process)
            process = None
            raise
        finally:
            self._free.put_nowait(process)
        if not is_decoded:
            raise InputError(answer.decode())
        return np.frombuffer(answer, np.uint8).reshape(self._size, self._size, 3)

    async def _start(self) -> Process:
        limits = (self._size, self._limits.pixels, self._limits.decoder_bytes)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread for each core, and each needs memory
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "onecycle.serve.decoder", *map(str, limits)),
                stdin=PIPE,
                stdout=PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only the service, which ends this process
            )
        except OSError as error:
            raise BusyError from error
        self._processes = {process, *(old for old in self._processes if old.returncode is None)}
        assert process.stdout
        try:
            await process.stdout.readexactly(len(READY))
        except asyncio.IncompleteReadError as error:
            raise BusyError from error
        except BaseException:
            _end(process)
            raise
        return process

    async def _ask(self, process: Process, content: bytes) -> tuple[bool, bytes]:
        """Let `process` decode `content`. Returns whether it succeeded, and the pixels or an error message."""
        assert process.stdin and process.stdout
        limits, loop = self._limits, asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(
                limits.busy_decode_seconds if self._waiting else limits.decode_seconds
            ) as deadline:
                self._began[deadline] = began
                process.stdin.writelines([REQUEST.pack(len(content)), content])  # in one call, to wake the process once
                is_decoded, length = RESPONSE.unpack(await process.stdout.readexactly(RESPONSE.size))
                return is_decoded, await process.stdout.readexactly(length)
        except TimeoutError:
            if loop.time() - began < limits.decode_seconds:
                raise BusyError from None
            words = f"this file takes longer than {limits.decode_seconds:g} seconds to decode; make the image smaller"
            raise InputError(words) from None
        except asyncio.IncompleteReadError:
            raise InputError("this file: the image cannot be decoded; replace or remove it") from None
        finally:
            del self._began[deadline]


def _end(process: Process) -> None:
    assert process.stdin
    process.stdin.close()
    if process.returncode is None:
        # In Python 3.11 and 3.12, `process.kill()` would take the exit status of an ended process away from asyncio.
        with suppress(OSError):  # raised if the process has already ended
            os.kill(process.pid, SIGKILL)
