"""A run has bit-identical results in one process and in several."""

from pathlib import Path

import pytest
from commands import NETWORK, small, start, train
from networks import FINDABLE
from studies import bits

# A run with Adam and learning rates from the LR finder.
WITH_FINDER = [*FINDABLE, "--epochs", "2", "--shards", "2", "--no-report"]


def test_a_run_with_the_finder_and_adam_is_the_same_on_one_and_two_processes(tmp_path: Path) -> None:
    alone = train(tmp_path / "1", *WITH_FINDER)
    shared = train(tmp_path / "2", *WITH_FINDER, "--processes", "2")
    assert bits(alone)["curve"] is not None
    assert bits(shared) == bits(alone)
    assert shared.read_json(shared.environment)["processes"][1].startswith("rank 1 (")


def test_a_run_of_two_processes_is_repeated_from_its_configuration_by_one(tmp_path: Path) -> None:
    shared = train(tmp_path / "2", *NETWORK, *small(epochs=1), "--processes", "2")
    repeated = train(tmp_path / "1", "--config", str(shared.config.resolve()), threads=2)
    assert bits(repeated) == bits(shared)


@pytest.mark.long
def test_find_lr_on_two_processes_finds_the_same_rates_and_prints_them_once(tmp_path: Path) -> None:
    alone = start(tmp_path / "1", "onecycle", "find-lr", *WITH_FINDER)
    assert alone.end() == 0, alone.output
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "onecycle", "find-lr"]
    finder = start(tmp_path / "2", *torchrun, *WITH_FINDER)
    assert finder.end() == 0, finder.output
    assert finder.output.count("lr_finder.json") == 1, "only the main process prints"
    found, expected = (next(tmp_path.glob(f"{number}/runs/*/lr_finder.json")) for number in (2, 1))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("processes", ["2", "4"])
def test_a_run_with_muon_and_test_time_augmentation_is_the_same_on_one_process_and_several(
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
    ("options", "message"),
    [
        (
            ["--processes", "3", *small()],
            "--shards is 4, which 3 processes cannot share evenly; use 1 or 2 or 4 processes",
        ),
        (["--processes", "2", *small(data="nowhere")], "nowhere: no such file or folder; check the path"),
        (["--processes", "0", *small()], "--processes is 0; it must be at least 1"),
        (["--processes", "2", *small(shards=40)], "--shards is 40; it must be at most --batch-size, which is 26"),
    ],
)
def test_bad_input_is_an_error_of_one_line_for_any_number_of_processes(
    tmp_path: Path, options: list[str], message: str
) -> None:
    command = start(tmp_path, "onecycle", "train", *NETWORK, *options)
    assert command.end() == 2
    (line,) = command.output.splitlines()
    assert line.startswith("onecycle: ") and message in line
