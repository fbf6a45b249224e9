import io
import os
import signal
import time
from contextlib import redirect_stderr
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from several import in_processes
from torch import nn

from onecycle.compute.plan import Acceleration
from onecycle.core.errors import InputError, LostError
from onecycle.distributed import agreement, ranks
from onecycle.models import Batch
from onecycle.run import resume
from onecycle.train import loop
from onecycle.train.nonfinite import NO_LAYER


def test_a_process_alone_is_the_only_rank_and_leads() -> None:
    alone = ranks.current()
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert list(alone.block(7)) == list(range(7))
    assert alone.of_all("mine") == ["mine"]
    assert alone.from_leader(lambda: 5) == 5
    agreement.require_alike({"data": "abc"})


@pytest.mark.parametrize(("shards", "processes"), [(4, 1), (4, 2), (12, 3), (1, 1)])
def test_shards_that_can_be_shared_out_evenly_are_taken(shards: int, processes: int) -> None:
    agreement.require_even(shards, processes)


def test_shards_that_cannot_be_shared_out_evenly_are_refused_with_what_can() -> None:
    with pytest.raises(InputError, match="--shards is 4, and 3 processes .* take 1 or 2 or 4, or give a multiple of 3"):
        agreement.require_even(4, 3)


def exchanged() -> dict[str, Any]:
    here = ranks.current()
    rows = torch.full((here.rank, 2), float(here.rank))  # the first rank has none
    if here.rank == 0:
        rows = torch.empty(0)
    return {
        "of all": here.of_all({"rank": here.rank}),
        "from the leader": here.from_leader(lambda: f"rank {here.rank}"),
        "bytes": here.bytes_from_leader(b"abc" if here.leads else b""),
        "no bytes": here.bytes_from_leader(b""),
        "rows": here.concatenated(rows)[:, 0].tolist(),
        "block": list(here.block(7)),
    }


def test_ranks_tell_each_other_values_bytes_and_rows() -> None:
    answers = in_processes(3, exchanged)
    assert [answer.pop("block") for answer in answers] == [[0, 1], [2, 3], [4, 5, 6]]
    for answer in answers:
        assert answer == {
            "of all": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "from the leader": "rank 0",
            "bytes": b"abc",
            "no bytes": b"",
            "rows": [1.0, 2.0, 2.0],
        }


def differing() -> None:
    rank = ranks.current().rank
    agreement.require_alike({"data": "abc" if rank != 1 else "def", "torch": "2.13.0", "threads": min(rank, 1)})


def test_ranks_that_differ_are_refused_and_the_first_says_in_what() -> None:
    told, *others = in_processes(3, differing)
    assert told == (
        "told: the processes do not compute the same: data is abc on ranks 0, 2 and def on rank 1; "
        "threads is 0 on rank 0 and 1 on ranks 1, 2; make these the same everywhere"
    )
    assert others == ["silent", "silent"]


def failing() -> None:
    if ranks.current().rank == 1:
        raise InputError("there is no such data set; check the path")
    ranks.current().of_all(None)


def test_an_error_of_one_rank_ends_all_and_is_told_by_the_first() -> None:
    told, *others = in_processes(3, failing)
    assert told.startswith("told: rank 1 (") and told.endswith("): there is no such data set; check the path")
    assert others == ["silent", "silent"]


def failing_alike() -> None:
    raise InputError("--epochs is 0; it must be at least 1")


def test_an_error_that_all_ranks_meet_is_told_once() -> None:
    assert in_processes(2, failing_alike) == ["told: --epochs is 0; it must be at least 1", "silent"]


def one_gone(number: int) -> float:
    here = ranks.current()
    here.concatenated(torch.zeros(1, 1))  # they are connected
    if here.rank == 1:
        os.kill(os.getpid(), number)
    began = time.monotonic()
    try:
        here.concatenated(torch.zeros(1, 1))
    except InputError as error:
        return f"{error} after {time.monotonic() - began:.0f} s"
    return "nothing was noticed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_has_gone_or_hangs_is_an_error_that_names_it(number: signal.Signals) -> None:
    first, _, third = in_processes(3, one_gone, number, silent_seconds=4)
    for told in (first, third):
        assert "rank 1 (" in told and ("has gone" in told or "did not answer for 4 s" in told), told


def one_idle(seconds: float, *, expected: bool, late: int = 1) -> str:
    here = ranks.current()
    here.of_all("begun")
    here.expect_soon(expected)
    if here.rank == late:
        time.sleep(seconds)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            here.concatenated(torch.zeros(1, 1))
    except LostError as error:
        return str(error)
    return said.getvalue()


def test_a_rank_that_beats_but_does_nothing_where_a_sum_is_expected_is_an_error_that_names_it() -> None:
    first, _ = in_processes(2, partial(one_idle, 30, expected=True), silent_seconds=4)
    assert first.startswith("rank 1 (") and "has done nothing for 4 s" in first, first


@pytest.mark.parametrize(("late", "waiting"), [(0, 1), (1, 0)])
def test_a_rank_that_lets_others_wait_for_its_data_is_waited_for_and_another_says_so(late: int, waiting: int) -> None:
    said = in_processes(2, partial(one_idle, 7, expected=False, late=late), silent_seconds=4)
    (line,) = said[waiting].splitlines()
    assert line.startswith(f"onecycle: waiting for rank {late} (")
    assert said[late] == ""


def one_meets_an_error_that_is_not_for_people() -> None:
    if ranks.current().rank == 1:
        raise OSError(28, "No space left on device")
    ranks.current().of_all(None)


def test_any_error_of_one_rank_is_told_by_the_first() -> None:
    first, *_ = in_processes(2, one_meets_an_error_that_is_not_for_people)
    assert first.startswith("told: rank 1 (") and first.endswith("): OSError: [Errno 28] No space left on device")


def one_is_told_to_stop() -> None:
    if ranks.current().rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    ranks.current().of_all(None)


def test_a_signal_to_one_rank_where_nothing_waits_for_all_is_told_by_the_first() -> None:
    first, second = in_processes(2, one_is_told_to_stop)
    assert first.startswith("told: rank 1 (") and first.endswith("): was told to stop by SIGTERM")
    assert second == "silent"


def not_finite_in_one() -> str:
    rank = ranks.current().rank
    found = ["the gradient of layer head (Linear) is", "the output of layer prep.0 (Conv2d) is", NO_LAYER][rank]
    batch = Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    with patch.object(loop, "first_not_finite", return_value=found):
        return loop._where(nn.Identity(), batch, Acceleration())  # type: ignore[arg-type]


def test_an_output_that_is_not_finite_on_one_rank_is_named_by_all() -> None:
    assert in_processes(3, not_finite_in_one) == ["the output of layer prep.0 (Conv2d) is"] * 3


def one_ends_before_the_leader() -> float:
    here = ranks.current()
    here.of_all("begun")
    if here.leads:
        time.sleep(3)
    began = time.monotonic()
    here.end_together()
    return time.monotonic() - began


def test_the_others_wait_until_the_leader_is_done() -> None:
    _, second = in_processes(2, one_ends_before_the_leader)
    assert second > 2


def the_leader_fails_at_the_end() -> str:
    here = ranks.current()
    here.of_all("begun")
    if here.leads:
        raise InputError("the result cannot be written; make room there")
    here.end_together()
    return "all is well"


def test_where_the_leader_fails_at_the_very_end_the_others_do_not_take_the_run_for_done() -> None:
    first, *others = in_processes(3, the_leader_fails_at_the_end)
    assert first == "told: the result cannot be written; make room there"
    assert others == ["silent", "silent"]


def one_resumes() -> None:
    resume.require_alike(resumes=ranks.current().rank == 1)


def test_to_go_on_in_one_process_and_begin_in_another_is_refused() -> None:
    told, other = in_processes(2, one_resumes)
    assert "--resume is not given on rank 0 and given on rank 1; make these the same everywhere" in told
    assert other == "silent"


def test_processes_that_do_not_reach_each_other_say_through_what_they_tried() -> None:
    told, other = in_processes(2, exchanged, environment={"GLOO_SOCKET_IFNAME": "none0"}, silent_seconds=4)
    assert "do not reach each other through the network interface none0; look at the firewall" in told
    assert other == "silent"


def one_has_lost_another() -> str:
    if ranks.current().rank == 1:
        raise LostError("rank 7 (there) has gone")
    try:
        ranks.current().of_all(None)
    except LostError as error:
        return str(error)
    return "nothing was noticed"


def test_a_loss_that_one_rank_notices_is_one_for_all() -> None:
    first, *_ = in_processes(3, one_has_lost_another)
    assert first == "rank 7 (there) has gone"


def stopped_while_summing(number: int) -> str:
    here = ranks.current()
    values = torch.zeros(3_000_000, 1)
    here.concatenated(values)
    if here.rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), number)
    several = ranks.several()
    assert several
    try:
        several.wait(torch.distributed.all_reduce(values, group=several.groups[0], async_op=True))
    except InputError as error:
        return str(error)
    return "nothing was noticed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_goes_or_hangs_within_a_sum_is_an_error_that_names_it(number: signal.Signals) -> None:
    first, _ = in_processes(2, stopped_while_summing, number, silent_seconds=4)
    assert first.startswith("rank 1 ("), first
