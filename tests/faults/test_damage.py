"""A damaged checkpoint is always detected and never used."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import Fault
from shared import made_once
from small_runs import SMALL, Reference, Workspace, bits

from onecycle.core.errors import InputError
from onecycle.storage.checkpoint import load_checkpoint, load_tensors

Damage = tuple[str, bytes]


@pytest.fixture(scope="session")
def killed_once(reference: Reference, for_all_workers: Path) -> Workspace:
    """A run that was killed in its second epoch. Its folder has the newest checkpoint and the previous checkpoint."""

    def make(folder: Path) -> None:
        at = Fault("onecycle.run.autosave.RunState.after_step", "kill", 9)
        assert Workspace(folder).onecycle(*SMALL, faults=[at], save_seconds=0).code == -9

    return Workspace(made_once(for_all_workers / "killed", make))


@pytest.fixture
def killed(killed_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the run `killed_once`, which a test can damage."""
    return Workspace(Path(shutil.copytree(killed_once.path, tmp_path / "killed")))


def damages(content: bytes, count: int) -> Iterator[Damage]:
    """Damaged versions of a checkpoint file: flipped bits, overwritten ranges and truncations, anywhere in the file."""
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(count):
        # One third of the changes is in the length field, one third in the header, and one third in the tensors.
        start, end = ((0, 8), (8, header), (header, len(content)))[number % 3]
        place = draw.randrange(start, end)
        kind = ("flip", "range", "cut", "zeros")[number // 3 % 4]
        length = draw.randint(1, 200)
        if kind == "flip":
            changed = bytes([content[place] ^ 1 << draw.randrange(8)])
        elif kind == "range":
            changed = draw.randbytes(length)
        else:
            changed = bytes(length)
        damaged = content[:place] if kind == "cut" else content[:place] + changed + content[place + len(changed) :]
        if damaged != content:
            yield f"{kind} at {place}", damaged
    yield "nothing left", b""
    yield "twice as long", content * 2


def test_every_damage_to_a_checkpoint_is_detected_and_the_previous_one_is_used(
    killed: Workspace, tmp_path: Path, whole: bool, figures: dict[str, Any]
) -> None:
    run = killed.run
    assert run is not None
    content = run.checkpoint.read_bytes()
    before = load_tensors(run.checkpoint_before)[1]
    newest, older = tmp_path / "newest.safetensors", tmp_path / "older.safetensors"
    shutil.copy(run.checkpoint_before, older)
    cases = noticed = recovered = 0
    for what, damaged in damages(content, 600 if whole else 24):
        newest.write_bytes(damaged)
        cases += 1
        state = load_checkpoint(newest, older)
        assert state is not None, what
        noticed += state.damaged is not None and str(newest) in state.damaged
        recovered += state.path == older and state.progress == before
        with pytest.raises(InputError, match="all its checkpoints are damaged"):
            load_checkpoint(newest, tmp_path / "none")
    assert cases == noticed == recovered
    figures["damaged checkpoints"] = {"cases": cases, "noticed": noticed, "recovered by the one before": recovered}


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_with_a_warning(
    reference: Reference, killed: Workspace
) -> None:
    run = killed.run
    assert run is not None
    content = bytearray(run.checkpoint.read_bytes())
    content[-100] ^= 1
    run.checkpoint.write_bytes(content)
    resumed = killed.onecycle(*killed.resume)
    assert resumed.code == 0
    assert (
        f"!!! {killed.resume[-1]}/checkpoint.safetensors is damaged: its checksum does not match its content; going on "
        f"from the previous checkpoint, {killed.resume[-1]}/checkpoint-before.safetensors"
    ) in resumed.output
    assert bits(killed) == reference.bits


def test_a_kill_during_the_first_write_after_that_loses_nothing(reference: Reference, killed: Workspace) -> None:
    """A resumed run that saves must not overwrite the intact previous checkpoint with the damaged newest one."""
    run = killed.run
    assert run is not None
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-1])
    again = killed.onecycle(*killed.resume, faults=[Fault("os.replace", "kill", 2)], save_seconds=0)
    assert again.code == -9
    assert killed.onecycle(*killed.resume).code == 0
    assert bits(killed) == reference.bits


def test_a_run_without_an_intact_checkpoint_is_refused_in_one_line_and_left_unchanged(killed: Workspace) -> None:
    run = killed.run
    assert run is not None
    for path in (run.checkpoint, run.checkpoint_before):
        path.write_bytes(path.read_bytes()[:-1])
    files = {path: path.read_bytes() for path in run.path.rglob("[!.]*") if path.is_file()}
    refused = killed.onecycle(*killed.resume)
    assert refused.code == 2
    assert "the run cannot go on because all its checkpoints are damaged: " in refused.last_line
    assert refused.last_line.count("its checksum does not match its content") == 2
    assert refused.last_line.endswith("; start a new run")
    assert {path: path.read_bytes() for path in run.path.rglob("[!.]*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--epochs", "4"), "epochs was 3 and is 4 (the learning rate of every step depends on it"),
        (("--lr-max", "0.1", "--seed", "7"), "lr_max was 0.248 and is 0.1; seed was 0 and is 7"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(
    killed: Workspace, options: tuple[str, ...], difference: str
) -> None:
    refused = killed.onecycle(*killed.resume, *options)
    assert refused.code == 2
    assert difference in refused.last_line


def test_a_configuration_changed_in_the_folder_is_refused(killed: Workspace) -> None:
    run = killed.run
    assert run is not None
    run.write_json(run.config, {**run.read_json(run.config), "epochs": 30})
    refused = killed.onecycle(*killed.resume)
    assert refused.code == 2
    assert "checkpoint.safetensors belongs to another run: epochs was 3 and is 30" in refused.last_line


def test_another_version_is_refused(killed: Workspace) -> None:
    run = killed.run
    assert run is not None
    environment = run.read_json(run.environment)
    environment["versions"]["torch"] = "2.10.0"
    run.write_json(run.environment, environment)
    refused = killed.onecycle(*killed.resume)
    assert refused.code == 2
    assert "can only be resumed as it was started: torch was 2.10.0 and is" in refused.last_line
    assert refused.last_line.endswith("; undo this, or start a new run")


def test_another_number_of_workers_changes_nothing(reference: Reference, killed: Workspace) -> None:
    assert killed.onecycle(*killed.resume, "--workers", "0").code == 0
    assert bits(killed) == reference.bits
