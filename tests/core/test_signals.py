import os
import signal
import subprocess
import sys
import threading

import pytest

from onecycle.core import signals
from onecycle.core.signals import Interrupted, watched


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_with_the_usual_code(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped, watched():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_a_deferred_signal_interrupts_where_it_is_asked_for() -> None:
    reached = []
    with pytest.raises(Interrupted), watched() as signals, signals.deferred():
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(signals.requested)
        signals.check()
        reached.append("too far")
    assert reached == [True]


def test_a_deferred_signal_that_nobody_asked_for_interrupts_at_the_end() -> None:
    reached = []
    with pytest.raises(Interrupted), watched() as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")
        reached.append("too far")
    assert reached == ["the end"]


def test_handlers_are_put_back_and_watching_within_watching_is_the_same() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with watched() as outer:
        with watched() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_another_thread_leaves_signals_as_they_are() -> None:
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
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")


def test_what_a_shell_has_ignored_stays_ignored() -> None:
    program = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from onecycle.core.signals import watched
with watched():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "still here\n", "")


def test_of_several_processes_a_deferred_signal_stops_none_before_they_agree() -> None:
    reached = []
    with pytest.raises(Interrupted) as stopped, watched() as watching, signals.together(), watching.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        watching.check()
        reached.append((watching.requested, signals.received()))
        signals.agree(signal.SIGINT)  # which came to another one
        reached.append(watching.requested)
        watching.check()
    assert reached == [(False, signal.SIGTERM), True]
    assert stopped.value.number == signal.SIGINT


def test_of_several_processes_one_takes_a_signal_that_is_passed_on_at_once_for_the_same() -> None:
    reached = []
    with watched() as watching, signals.together(), watching.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end")
    assert reached == ["the end"]


def test_a_signal_that_is_held_changes_nothing() -> None:
    with watched(), signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received() == 0, "it was that of a process that has ended its watch"
