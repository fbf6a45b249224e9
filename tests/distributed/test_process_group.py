import io
import os
import signal
import time
from contextlib import nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from several import SILENT, in_processes
from torch import nn

from onecycle.compute.plan import ComputePlan
from onecycle.core.errors import InputError, PeerError
from onecycle.core.signals import Interrupted, watched
from onecycle.distributed import consistency
from onecycle.distributed.process_group import SINGLE_PROCESS, GlooProcessGroup, ProcessGroup
from onecycle.models import Batch
from onecycle.run import resume
from onecycle.train import loop
from onecycle.train.nonfinite import NO_LAYER

NOT_DETECTED = "no process is known to be lost"


def test_a_single_process_is_rank_0_of_1_and_the_main_process() -> None:
    group = SINGLE_PROCESS
    assert (group.rank, group.size, group.is_main_process) == (0, 1, True)
    assert list(group.shard_range(7)) == list(range(7))
    assert group.all_gather_object("mine") == ["mine"]
    assert group.broadcast_object(lambda: 5) == 5
    assert group.all_reduce_max(3) == 3
    consistency.require_consistent({"data": "abc"}, group)


@pytest.mark.parametrize(("shards", "processes"), [(4, 1), (4, 2), (12, 3), (1, 1)])
def test_shards_that_the_processes_can_share_evenly_are_accepted(shards: int, processes: int) -> None:
    consistency.require_divisible(shards, processes)


def test_shards_that_the_processes_cannot_share_evenly_are_refused_with_the_numbers_that_work() -> None:
    message = (
        "--shards is 4, which 3 processes cannot share evenly; use 1 or 2 or 4 processes, or set --shards to a "
        "multiple of 3"
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        consistency.require_divisible(4, 3)


def exchange(group: ProcessGroup) -> dict[str, Any]:
    rows = torch.full((group.rank, 2), float(group.rank))
    if group.rank == 0:  # rank 0 contributes no row
        rows = torch.empty(0)
    return {
        "gathered objects": group.all_gather_object({"rank": group.rank}),
        "broadcast object": group.broadcast_object(lambda: f"rank {group.rank}"),
        "broadcast bytes": group.broadcast_bytes(b"abc" if group.is_main_process else b""),
        "no bytes": group.broadcast_bytes(b""),
        "gathered rows": group.all_gather(rows)[:, 0].tolist(),
        "maximum": group.all_reduce_max(10 * group.rank),
        "shards": list(group.shard_range(7)),
    }


def test_ranks_exchange_objects_bytes_rows_and_a_maximum() -> None:
    results = in_processes(3, exchange)
    assert [result.pop("shards") for result in results] == [[0, 1], [2, 3], [4, 5, 6]]
    for result in results:
        assert result == {
            "gathered objects": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "broadcast object": "rank 0",
            "broadcast bytes": b"abc",
            "no bytes": b"",
            "gathered rows": [1.0, 2.0, 2.0],
            "maximum": 20,
        }


def require_different_values(group: ProcessGroup) -> None:
    values = {"data": "abc" if group.rank != 1 else "def", "torch": "2.13.0", "threads": min(group.rank, 1)}
    consistency.require_consistent(values, group)


def test_ranks_that_differ_are_refused_and_the_main_process_reports_the_differences() -> None:
    first, *others = in_processes(3, require_different_values)
    assert first == (
        "InputError: the processes differ: data is abc on ranks 0, 2 and def on rank 1; "
        "threads is 0 on rank 0 and 1 on ranks 1, 2; make these the same on all of them"
    )
    assert others == [SILENT, SILENT]


def fail_on_rank_1(group: ProcessGroup) -> None:
    if group.rank == 1:
        raise InputError("there is no such data set; check the path")
    group.all_gather_object(None)


def test_an_error_on_one_rank_ends_all_and_the_main_process_reports_it() -> None:
    first, *others = in_processes(3, fail_on_rank_1)
    assert first.startswith("InputError: rank 1 (") and first.endswith("): there is no such data set; check the path")
    assert others == [SILENT, SILENT]


def fail_on_all_ranks(group: ProcessGroup) -> None:
    raise InputError("--epochs is 0; it must be at least 1")


def test_an_error_on_all_ranks_is_reported_once() -> None:
    assert in_processes(2, fail_on_all_ranks) == ["InputError: --epochs is 0; it must be at least 1", SILENT]


def lose_rank_1_between_collectives(group: ProcessGroup, number: int) -> str:
    group.all_gather(torch.zeros(1, 1))  # connects the processes
    if group.rank == 1:
        os.kill(os.getpid(), number)
    started = time.monotonic()
    try:
        group.all_gather(torch.zeros(1, 1))
    except PeerError as error:
        return f"{error} after {time.monotonic() - started:.0f} s"
    return NOT_DETECTED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_error_names_a_rank_that_was_killed_or_stopped(number: signal.Signals) -> None:
    first, _, third = in_processes(3, lose_rank_1_between_collectives, number, silent_seconds=4, wanted=(0, 2))
    for error in (first, third):
        assert "rank 1 (" in error and ("is gone" in error or "did not answer for 4 s" in error), error


def idle_on_one_rank(group: ProcessGroup, seconds: float, *, is_watched: bool, late: int = 1) -> str:
    group.all_gather_object("started")
    stderr = io.StringIO()
    try:
        with group.watch_progress() if is_watched else nullcontext(), redirect_stderr(stderr):
            if group.rank == late:
                time.sleep(seconds)
            group.all_gather(torch.zeros(1, 1))
    except PeerError as error:
        return str(error)
    return stderr.getvalue()


def test_the_error_names_a_rank_that_sends_heartbeats_but_makes_no_progress() -> None:
    work = partial(idle_on_one_rank, seconds=30, is_watched=True)
    first, _ = in_processes(2, work, silent_seconds=4, wanted=(0,))
    assert first.startswith("rank 1 (") and "has made no progress for 4 s" in first, first


@pytest.mark.parametrize(("late", "waiting"), [(0, 1), (1, 0)])
def test_a_rank_that_loads_its_data_for_long_is_waited_for_and_a_waiting_rank_names_it(late: int, waiting: int) -> None:
    work = partial(idle_on_one_rank, seconds=7, is_watched=False, late=late)
    printed = in_processes(2, work, silent_seconds=4)
    (line,) = printed[waiting].splitlines()
    assert line.startswith(f"onecycle: waiting for rank {late} (")
    assert printed[late] == ""


def watch_only_rank_0(group: ProcessGroup) -> str:
    group.all_gather_object("started")
    if group.rank == 1:
        time.sleep(7)
    with group.watch_progress() if group.rank == 0 else nullcontext():
        return str(group.all_reduce_max(group.rank))


def test_a_rank_that_waits_in_a_collective_has_not_stalled() -> None:
    assert in_processes(2, watch_only_rank_0, silent_seconds=4) == ["1", "1"]


def raise_os_error_on_rank_1(group: ProcessGroup) -> None:
    if group.rank == 1:
        raise OSError(28, "No space left on device")
    group.all_gather_object(None)


def test_the_main_process_reports_an_unexpected_error_of_another_rank() -> None:
    first, *_ = in_processes(2, raise_os_error_on_rank_1, wanted=(0,))
    assert first.startswith("PeerError: rank 1 (") and first.endswith("): OSError: [Errno 28] No space left on device")


def terminate_rank_1(group: ProcessGroup) -> None:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    group.all_gather_object(None)


def test_the_main_process_reports_a_signal_to_another_rank_that_the_ranks_did_not_agree_on() -> None:
    first, second = in_processes(2, terminate_rank_1)
    assert first.startswith("PeerError: rank 1 (") and first.endswith("): received SIGTERM")
    assert second == SILENT


def agree_after_a_signal_to_rank_1(group: ProcessGroup) -> list[int]:
    checks = []
    try:
        with watched() as interruption, interruption.deferred():
            for step in range(3):
                if (group.rank, step) == (1, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
                consistency.agree_to_stop(group)
                interruption.check()
                checks.append(step)
    except Interrupted as stopped:
        return [*checks, stopped.number]
    return checks


def test_a_signal_to_one_rank_stops_all_ranks_after_the_same_step() -> None:
    assert in_processes(2, agree_after_a_signal_to_rank_1) == [[0, signal.SIGTERM]] * 2


def find_not_finite(group: ProcessGroup) -> str:
    of_ranks = ["the gradient of layer head (Linear) is", "the output of layer prep.0 (Conv2d) is", NO_LAYER]
    batch = Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    with patch.object(loop, "first_not_finite", return_value=of_ranks[group.rank]):
        return loop._where_not_finite(nn.Identity(), batch, ComputePlan(), group)  # type: ignore[arg-type]


def test_all_ranks_name_an_output_that_is_not_finite_on_one_rank() -> None:
    assert in_processes(3, find_not_finite) == ["the output of layer prep.0 (Conv2d) is"] * 3


def wait_for_a_slow_main_process(group: ProcessGroup, done: Path) -> bool:
    group.all_gather_object("started")
    if group.is_main_process:
        time.sleep(0.5)
        done.touch()
    group.wait_for_main_process()
    return done.exists()


def test_the_others_wait_until_the_main_process_is_done(tmp_path: Path) -> None:
    assert in_processes(2, wait_for_a_slow_main_process, tmp_path / "done") == [True, True]


def fail_on_the_main_process_at_the_end(group: ProcessGroup) -> str:
    group.all_gather_object("started")
    if group.is_main_process:
        raise InputError("the result cannot be written; make room there")
    group.wait_for_main_process()
    return "the run is complete"


def test_no_process_takes_the_run_for_complete_if_the_main_process_fails_at_the_end() -> None:
    first, *others = in_processes(3, fail_on_the_main_process_at_the_end)
    assert first == "InputError: the result cannot be written; make room there"
    assert others == [SILENT, SILENT]


def resume_on_rank_1_only(group: ProcessGroup) -> None:
    resume.require_same_start(group, resumes=group.rank == 1)


def test_to_resume_in_one_process_and_start_in_another_is_refused() -> None:
    first, second = in_processes(2, resume_on_rank_1_only)
    assert "--resume is not given on rank 0 and given on rank 1; make these the same on all of them" in first
    assert second == SILENT


def test_the_error_names_the_network_interface_through_which_the_processes_cannot_connect() -> None:
    first, second = in_processes(2, exchange, environment={"GLOO_SOCKET_IFNAME": "none0"}, silent_seconds=4)
    assert "they cannot connect through the network interface none0; open all ports between them" in first
    assert second == SILENT


def lose_rank_7_on_rank_1(group: ProcessGroup) -> str:
    if group.rank == 1:
        raise PeerError("rank 7 (there) is gone")
    try:
        group.all_gather_object(None)
    except PeerError as error:
        return str(error)
    return NOT_DETECTED


def test_a_process_that_one_rank_has_lost_is_lost_for_all() -> None:
    first, *_ = in_processes(3, lose_rank_7_on_rank_1, wanted=(0,))
    assert first == "rank 7 (there) is gone"


def lose_rank_1_within_a_collective(group: ProcessGroup, number: int) -> str:
    assert isinstance(group, GlooProcessGroup)
    values = torch.zeros(3_000_000, 1)
    group.all_gather(values)
    if group.rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), number)
    try:
        group.wait(torch.distributed.all_reduce(values, group=group.channels[0], async_op=True))
    except PeerError as error:
        return str(error)
    return NOT_DETECTED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_error_names_a_rank_that_is_lost_within_a_collective(number: signal.Signals) -> None:
    first, _ = in_processes(2, lose_rank_1_within_a_collective, number, silent_seconds=4, wanted=(0,))
    assert first.startswith("rank 1 ("), first
