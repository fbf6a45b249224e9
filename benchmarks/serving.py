"""Measure `onecycle serve` under load: requests per second and latencies, with 1, 16 and 128 concurrent clients.

Then 20,000 requests show whether memory grows. Finally, slow clients, huge uploads, decompression bombs and a flood of
requests attack the service while another client sends normal requests. Clients and service share the machine. A request
contains one photograph of 320×240 pixels.
"""

import argparse
import asyncio
import io
import itertools
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image
from studies import rounded, served, write

from onecycle.compute import hardware
from onecycle.predict.predictor import load
from onecycle.run import environment
from onecycle.storage.run_folder import RunFolder

RECORD = RunFolder(Path(__file__).parents[1] / "results" / "fast-cifar10")
IMAGE, CLASS = 4, b"cat"  # index and class of a photograph in the file augmentations.npz of RECORD


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--seconds", type=float, default=10, help="seconds for each number of clients, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000, help="requests during which memory is measured")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--out", type=Path, default=Path("results/serving.json"))
    options = parser.parse_args()
    with served() as (address, process):
        port = int(address.rstrip("/").rpartition(":")[2])
        record = asyncio.run(measured(options, port, process))
    plan = load().plan
    write(options.out, {**record, "environment": environment.describe(hardware.detect(), plan)})
    return 0


async def measured(options: argparse.Namespace, port: int, process: int) -> dict[str, Any]:
    await load_of(port, 16, seconds=3)  # warm-up
    rounds: dict[int, list[dict[str, float]]] = {clients: [] for clients in options.clients}
    for round, clients in itertools.product(range(options.rounds), options.clients):
        rounds[clients].append(summary(await load_of(port, clients, seconds=options.seconds), options.seconds))
        print(f"round {round + 1}, {clients} clients: {rounds[clients][-1]}")
    record: dict[str, Any] = {
        "clients": {
            clients: {name: rounded(statistics.median(one[name] for one in found)) for name in found[0]}
            for clients, found in rounds.items()
        },
        "rounds": rounds,
        "memory": await memory(port, process, options.requests),
    }
    print(record["memory"])
    record["under attack"] = {}
    for name in options.attacks:
        record["under attack"][name] = await attacked(port, ATTACKS[name])
        print(name, record["under attack"][name])
    return record


def form(*contents: bytes) -> bytes:
    """An HTTP request that uploads one file for each of `contents`."""
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + c + b"\r\n" for c in contents
    )
    body = b"".join(parts) + b"--b--\r\n"
    return head(len(body)) + body


def head(length: int) -> bytes:
    lines = (b"POST /predict HTTP/1.1", b"Host: localhost", b"Content-Type: multipart/form-data; boundary=b")
    return b"\r\n".join([*lines, b"Content-Length: %d" % length, b"", b""])


def photo_request() -> bytes:
    """A request with one photograph."""
    content = io.BytesIO()
    pixels = RECORD.read_arrays(RECORD.augmentations)["originals"][IMAGE]
    Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return form(content.getvalue())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of the next response."""
    start = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(start.split()[1]), await reader.readexactly(length)


class Outcome:
    """The latencies of the requests with a correct response, and the number of all other requests."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lost = 0


async def load_of(port: int, clients: int, *, seconds: float = 0, requests: int = 0) -> Outcome:
    """Let `clients` clients send request after request, for `seconds` or until `requests` are sent in total."""
    outcome, request, sent = Outcome(), photo_request(), itertools.count()
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while next(sent) < requests if requests else time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(request)
            try:
                status, body = await answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                outcome.lost += 1
                break
            if status == 200 and body.partition(b'"class_name":"')[2].startswith(CLASS):
                outcome.seconds.append(time.perf_counter() - started)
            else:
                outcome.lost += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcome


def summary(outcome: Outcome, seconds: float) -> dict[str, float]:
    hundredths = statistics.quantiles(outcome.seconds, n=100)
    return {
        "requests_a_second": rounded(len(outcome.seconds) / seconds),
        "p50_milliseconds": rounded(1000 * hundredths[49]),
        "p99_milliseconds": rounded(1000 * hundredths[98]),
        "lost": outcome.lost,
    }


async def memory(port: int, process: int, requests: int) -> dict[str, Any]:
    """The memory of the service after each tenth of `requests` requests by 16 clients."""
    held, lost = [resident_mib(process)], 0
    for _ in range(10):
        lost += (await load_of(port, 16, requests=requests // 10)).lost
        held.append(resident_mib(process))
    return {"requests": requests, "lost": lost, "mib_after_each_tenth": [round(value) for value in held]}


def resident_mib(process: int) -> float:
    """The memory of a process and of the processes that it started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    statuses = [Path(f"/proc/{one}/status").read_text() for one in (process, *children)]
    return sum(int(status.partition("VmRSS:")[2].split()[0]) for status in statuses) / 1024


async def attacked(port: int, attack: Callable[[int], Awaitable[str]]) -> dict[str, Any]:
    """The responses to a normal client during an attack and after it."""
    task = asyncio.ensure_future(attack(port))
    during = Outcome()
    refused = 0
    await asyncio.sleep(0.3)
    while not task.done():
        try:
            one = await load_of(port, 1, requests=1)
        except OSError:
            refused += 1
        else:
            during.seconds += one.seconds
            refused += one.lost
        await asyncio.sleep(0.05)
    after = await load_of(port, 1, requests=20)
    return {
        "attack": await task,
        "answered_during": len(during.seconds),
        "told_to_come_again_during": refused,
        "longest_milliseconds_during": rounded(1000 * max(during.seconds, default=0)),
        "answered_after": len(after.seconds),
        "lost_after": after.lost,
    }


async def slow_clients(port: int) -> str:
    """Clients that send a request byte by byte."""

    async def slow() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in photo_request():
            writer.write(bytes([byte]))
            await asyncio.sleep(0.2)
            if writer.is_closing():
                return

    await asyncio.wait([asyncio.ensure_future(slow()) for _ in range(100)], timeout=15)
    for task in asyncio.all_tasks():
        if task.get_coro().__qualname__.endswith("slow"):  # type: ignore[union-attr]
            task.cancel()
    return "100 clients that send a byte every 0.2 seconds, for 15 seconds"


async def huge_uploads(port: int) -> str:
    """Clients that each upload 1 GiB. A client stops early if the service cuts it off."""
    statuses = []

    async def huge() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(2**30))
        sent, chunk = 0, bytes(2**20)
        try:
            while sent < 2**30:
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
        except OSError:
            pass
        try:
            statuses.append((await answer(reader))[0])
        except (OSError, asyncio.IncompleteReadError):
            statuses.append(0)
        writer.close()

    await asyncio.gather(*(huge() for _ in range(4)))
    return f"4 uploads of 1 GiB, answered with {sorted(statuses)} (0: cut off)"


async def bombs(port: int) -> str:
    """Decompression bombs: PNGs of few bytes and many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def png(side: int) -> bytes:
        start = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        pixels = zlib.compress(bytes((3 * side + 1) * min(side, 5_400)), 1)
        return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    statuses = []
    for content in (png(50_000), png(5_400)):  # the service refuses the first for its size, and decodes the second
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            writer.write(form(*[content] * 2))
            statuses.append((await answer(reader))[0])
        writer.close()
    unique = sorted(set(statuses))
    return f"10 requests with 2 PNGs each, of 50,000×50,000 or 5,400×5,400 pixels, answered with {unique}"


async def flood(port: int) -> str:
    """More concurrent clients than the service accepts, for some seconds."""
    statuses: dict[int, int] = {}
    request, end = photo_request(), time.perf_counter() + 8

    async def client() -> None:
        while time.perf_counter() < end:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                status, _ = await answer(reader)
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                status = 0
            statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(client() for _ in range(400)))
    return f"400 clients for 8 seconds, answered with {dict(sorted(statuses.items()))} (0: cut off)"


ATTACKS = {"slow clients": slow_clients, "huge uploads": huge_uploads, "bombs": bombs, "a flood": flood}


if __name__ == "__main__":
    sys.exit(main())
