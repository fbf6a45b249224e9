"""The processes that decode images. A process that a test stops with SIGSTOP takes as long as a very slow image."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import requests
from PIL import Image

from onecycle.core.errors import InputError
from onecycle.data.image_files import to_square
from onecycle.serve.batching import BusyError
from onecycle.serve.decoders import PROCESSES, Decoders
from onecycle.serve.limits import Limits

from .conftest import WITH_LIMITS, Service, children, started

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def png(image: Image.Image = NOISE) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Pool(Decoders):
    """Decoders whose processes the tests can find and stop. The tests have other child processes, too."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(32, limits)
        self._others = children(os.getpid())

    def ids(self) -> list[int]:
        return [process for process in children(os.getpid()) if process not in self._others]

    def send(self, number: signal.Signals) -> None:
        for process in self.ids():
            os.kill(process, number)


def run(test: Coroutine[None, None, None]) -> None:
    with ThreadPoolExecutor(1) as pool:  # a new thread, because Playwright may have left an event loop in this one
        pool.submit(asyncio.run, test).result()


@asynccontextmanager
async def running(**limits: float) -> AsyncIterator[Pool]:
    pool = Pool(Limits(**limits))  # type: ignore[arg-type]
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()
        assert pool.ids() == []


def test_images_have_the_same_pixels_as_without_processes() -> None:
    async def decode() -> None:
        async with running() as decoders:
            for pixels in await asyncio.gather(*(decoders.decode(png()) for _ in range(9))):
                assert (pixels == to_square(NOISE, 32)).all()
            assert len(decoders.ids()) == PROCESSES

    run(decode())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this file: the file is empty; replace or remove it"),
        (b"plain text", "this file: not an image (10 bytes); replace or remove it"),
        (png()[:-50], "this file: the image cannot be read (image file is truncated"),
        (png(Image.new("1", (6000, 6000))), "6000×6000 pixels; the limit is 30,000,000 pixels"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_with_the_reason(content: bytes, words: str) -> None:
    async def decode() -> None:
        async with running() as decoders:
            with pytest.raises(InputError) as error:
                await decoders.decode(content)
            assert words in str(error.value)

    run(decode())


def test_an_image_that_takes_too_long_is_refused_and_its_process_replaced() -> None:
    async def decode() -> None:
        async with running(decode_seconds=0.5) as decoders:
            stopped = decoders.ids()
            decoders.send(signal.SIGSTOP)
            with pytest.raises(InputError, match="takes longer than 0.5 seconds to decode; make the image smaller"):
                await decoders.decode(png())
            decoders._limits = replace(decoders._limits, decode_seconds=60)  # a new process may start slowly
            assert (await decoders.decode(png())).shape == (32, 32, 3)
            assert len(decoders.ids()) == PROCESSES and decoders.ids() != stopped

    run(decode())


def test_an_image_that_takes_long_ends_early_if_others_wait() -> None:
    async def decode() -> None:
        async with running(decode_seconds=600, busy_decode_seconds=0.5) as decoders:
            decoders.send(signal.SIGSTOP)
            slow = [asyncio.create_task(decoders.decode(png())) for _ in range(PROCESSES)]
            await asyncio.sleep(0.1)
            assert (await decoders.decode(png())).shape == (32, 32, 3)
            ended = await asyncio.gather(*slow, return_exceptions=True)
            assert [type(error) for error in ended] == [BusyError] * PROCESSES

    run(decode())


def test_nothing_is_decoded_for_a_request_that_has_ended() -> None:
    async def decode() -> None:
        async with running() as decoders:
            decoders.send(signal.SIGSTOP)
            slow = [asyncio.create_task(decoders.decode(png())) for _ in range(PROCESSES + 1)]
            await asyncio.sleep(0.1)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            assert (await decoders.decode(png())).shape == (32, 32, 3)

    run(decode())


def test_a_process_that_ends_by_itself_is_replaced() -> None:
    async def decode() -> None:
        async with running() as decoders:
            decoders.send(signal.SIGSTOP)
            crash = asyncio.create_task(decoders.decode(png()))
            await asyncio.sleep(0.1)
            decoders.send(signal.SIGKILL)
            with pytest.raises(InputError, match="this file: the image cannot be decoded; replace or remove it"):
                await crash
            while decoders.ids() or any(process.returncode is None for process in decoders._processes):
                await asyncio.sleep(0.01)
            for pixels in await asyncio.gather(*(decoders.decode(png()) for _ in range(PROCESSES))):
                assert pixels.shape == (32, 32, 3)

    run(decode())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_an_image_that_needs_too_much_memory_is_refused() -> None:
    async def decode() -> None:
        async with running(decoder_bytes=150 * 2**20) as decoders:
            for mode in ("RGB", "LA"):  # opening the first takes too much, and blending the second with white
                with pytest.raises(InputError, match="^this file: .*[mM]emory"):
                    await decoders.decode(png(Image.new(mode, (6000, 5000) if mode == "RGB" else (4000, 4000))))
            assert (await decoders.decode(png())).shape == (32, 32, 3)

    run(decode())


def test_a_decoder_starts_without_torch() -> None:
    program = "import onecycle.serve.decoder, sys; print({'torch', 'asyncio', 'fastapi'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


@pytest.fixture
def impatient() -> Iterator[Service]:
    with started("-c", WITH_LIMITS, repr({"decode_seconds": 3.0, "busy_decode_seconds": 0.0})) as service:
        for process in service.decoders():
            os.kill(process, signal.SIGSTOP)
        yield service


def test_an_image_that_takes_too_long_does_not_affect_other_requests(impatient: Service) -> None:
    def post(count: int = 1) -> requests.Response:
        files = [("files", ("a.png", png()))] * count
        return requests.post(impatient.url + "predict", files=files, timeout=60)

    slow = post()
    (answer,) = slow.json()["images"]
    assert (slow.status_code, answer["predictions"]) == (422, [])
    assert answer["error"] == "this file takes longer than 3 seconds to decode; make the image smaller"
    assert post().status_code == 200
    assert post(8).status_code == 200, "the images of a request do not end each other"
    assert requests.get(impatient.url + "health", timeout=10).json()["requests"] == 0


def test_processes_that_are_ended_again_while_they_end_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def end() -> None:
        for _ in range(5):
            async with running() as decoders:
                await asyncio.gather(*(decoders.stop() for _ in range(200)))

    run(end())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_signal_stops_the_service_while_an_image_is_decoded() -> None:
    def post() -> None:
        with suppress(requests.ConnectionError):
            requests.post(service.url + "predict", files={"files": ("a.png", png())}, timeout=60)

    with started("-m", "onecycle", "serve", "--port", "0") as service:
        decoders = service.decoders()
        for process in decoders:
            os.kill(process, signal.SIGSTOP)
        client = threading.Thread(target=post)
        client.start()
        while requests.get(service.url + "health", timeout=10).json()["requests"] == 0:
            pass
        service.process.send_signal(signal.SIGINT)
        service.process.wait(timeout=60)
        client.join(timeout=60)
        assert not any(os.path.exists(f"/proc/{process}/stat") for process in decoders)
