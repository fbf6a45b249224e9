"""The same run in one process and in several, to the last bit."""

from pathlib import Path

import pytest
from commands import NETWORK, small, start, train
from networks import FINDABLE
from studies import bits

# Adam, with rates that the finder finds.
FOUND = [*FINDABLE, "--epochs", "2", "--shards", "2", "--no-report"]


def test_a_run_with_the_finder_and_adam_is_the_same_on_one_and_two_processes(tmp_path: Path) -> None:
    alone = train(tmp_path / "1", *FOUND)
    shared = train(tmp_path / "2", *FOUND, "--processes", "2")
    assert bits(alone)["curve"] is not None
    assert bits(shared) == bits(alone)
    assert shared.read_json(shared.environment)["processes"][1].startswith("rank 1 (")


@pytest.mark.long
def test_find_lr_by_two_processes_finds_what_one_does_and_says_so_once(tmp_path: Path) -> None:
    alone = start(tmp_path / "1", "onecycle", "find-lr", *FOUND)
    assert alone.end() == 0, alone.said
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "onecycle", "find-lr"]
    finder = start(tmp_path / "2", *torchrun, *FOUND)
    assert finder.end() == 0, finder.said
    assert finder.said.count("lr_finder.json") == 1, "one of them tells"
    found, expected = (next(tmp_path.glob(f"{number}/runs/*/lr_finder.json")) for number in (2, 1))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("processes", ["2", "4"])
def test_a_run_with_muon_and_several_views_is_the_same_on_one_process_and_several(
    tmp_path: Path, processes: str
) -> None:
    options = [*NETWORK, *small(), "--test-time-augmentation"]
    alone = train(tmp_path / "1", *options)
    assert bits(train(tmp_path / processes, *options, "--processes", processes)) == bits(alone)


@pytest.mark.long
def test_the_number_of_shards_is_what_the_bits_depend_on(tmp_path: Path) -> None:
    one, two = (train(tmp_path / str(shards), *NETWORK, *small(epochs=1, shards=shards)) for shards in (1, 2))
    assert one.weights.read_bytes() != two.weights.read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--processes", "3", *small()],
            "--shards is 4, and 3 processes cannot share them out evenly; take 1 or 2 or 4",
        ),
        (["--processes", "2", *small(data="nowhere")], "nowhere: no such file or folder; check the path"),
        (["--processes", "0", *small()], "--processes is 0; it must be at least 1"),
        (["--processes", "2", *small(shards=40)], "--shards is 40; it must be at most --batch-size, which is 26"),
    ],
)
def test_bad_input_is_told_in_one_line_whatever_the_number_of_processes(
    tmp_path: Path, options: list[str], told: str
) -> None:
    command = start(tmp_path, "onecycle", "train", *NETWORK, *options)
    assert command.end() == 2
    (line,) = command.said.splitlines()
    assert line.startswith("onecycle: ") and told in line
