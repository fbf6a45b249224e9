import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from onecycle.data.store.decode import each_decoded


class File(NamedTuple):
    number: int
    content: bytes | np.ndarray
    where: str = "a file"


def files(count: int, size: int) -> Iterator[File]:
    return (File(number, bytes(size)) for number in range(count))


@pytest.mark.parametrize(("count", "size"), [(0, 10), (1, 10), (200, 10), (70, 60_000), (1, 60_000)])
def test_each_file_has_its_result_in_order(count: int, size: int) -> None:
    results = each_decoded(files(count, size), lambda file: -file.number)
    assert [(file.number, result) for file, result in results] == [(number, -number) for number in range(count)]
    assert not any(thread.name == "decoder" for thread in threading.enumerate())


def test_large_files_are_decoded_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=30)
    results = each_decoded(files(2, 60_000), lambda _: together.wait(), threads=2)
    assert {result for _, result in results} == {0, 1}


def test_large_arrays_are_decoded_at_the_same_time_and_only_a_few_are_read() -> None:
    together, read = threading.Barrier(2, timeout=30), []

    def arrays() -> Iterator[File]:
        for number in range(64):
            read.append(number)
            yield File(number, np.zeros(8_000_000, np.uint8))

    results = each_decoded(arrays(), lambda _: together.wait(), threads=2)
    next(results)
    assert len(read) < 10


@pytest.mark.parametrize("size", [10, 60_000])
def test_an_error_reaches_the_caller(size: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(each_decoded(files(3, size), lambda file: 1 // (file.number - 1)))


@pytest.mark.parametrize("size", [10, 60_000])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_while_an_image_is_decoded(size: int, number: signal.Signals) -> None:
    program = f"""
import sys, time
from onecycle.core.signals import Interrupted, watched
from onecycle.data.store.decode import each_decoded

class File:
    content, where = bytes({size}), "a file"

def decode(file):
    sys.stdout.write("decoding\\n")
    sys.stdout.flush()
    time.sleep(600)

try:
    with watched():
        list(each_decoded(iter([File()] * 3), decode))
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"decoding\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    finally:
        process.kill()
        process.communicate()
