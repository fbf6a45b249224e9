import os
import signal
import subprocess
import sys
import threading

import pytest

from onecycle.core import signals
from onecycle.core.signals import Interrupted, watched


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_with_the_usual_exit_code(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped, watched():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_a_deferred_signal_interrupts_at_the_next_check() -> None:
    reached = []
    with pytest.raises(Interrupted), watched() as signals, signals.deferred():
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(signals.requested)
        signals.check()
        reached.append("too far")
    assert reached == [True]


def test_a_deferred_signal_interrupts_at_the_end_of_the_block_without_a_check() -> None:
    reached = []
    with pytest.raises(Interrupted), watched() as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")
        reached.append("too far")
    assert reached == ["the end"]


def test_handlers_are_restored_and_a_nested_watch_is_the_same() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with watched() as outer:
        with watched() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_another_thread_does_not_change_the_handlers() -> None:
    seen = []

    def watch() -> None:
        with watched() as signals:
            seen.append((signal.getsignal(signal.SIGINT), signals.requested))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import os, signal
from onecycle.core.signals import watched
with watched() as interruption, interruption.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (completed.returncode, completed.stdout, completed.stderr) == (143, "", "")


def test_a_signal_that_a_shell_ignores_stays_ignored() -> None:
    program = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from onecycle.core.signals import watched
with watched():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "still here\n", "")


def test_a_deferred_signal_stops_no_process_before_all_processes_agree() -> None:
    reached = []
    with pytest.raises(Interrupted) as stopped, watched() as watching, signals.together(), watching.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        watching.check()
        reached.append((watching.requested, signals.received()))
        signals.agree(signal.SIGINT)  # as if another process had received SIGINT
        reached.append(watching.requested)
        watching.check()
    assert reached == [(False, signal.SIGTERM), True]
    assert stopped.value.number == signal.SIGINT


def test_a_signal_that_a_launcher_forwards_at_once_counts_as_the_same_signal() -> None:
    reached = []
    with watched() as watching, signals.together(), watching.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end")
    assert reached == ["the end"]


def test_a_held_signal_has_no_effect() -> None:
    with watched(), signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received() == 0, "no signal is recorded after `watched` has ended"
