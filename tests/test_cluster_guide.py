"""docs/cluster.md says what the examples do. Whether these work is tried in tests/cluster."""

import re
from pathlib import Path

import pytest

from onecycle import cli

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
TWO_MACHINES, SLURM, RAY = (
    (ROOT / "examples" / name).read_text() for name in ("two_machines.sh", "slurm.sbatch", "ray-cluster.yaml")
)
COMMANDS = "\n".join(re.findall(r"```\n(.*?)```", GUIDE, flags=re.DOTALL))


def test_every_file_it_names_is_there() -> None:
    named = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert named
    for target in named + [f"../{path}" for path in re.findall(r"examples/[\w.-]+", GUIDE)]:
        assert (ROOT / "docs" / target).exists(), target


def test_every_option_it_shows_is_one_that_the_program_takes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"onecycle (train|study|predict) ([^`\n]*)", GUIDE)
    shown += [("train", options) for options in re.findall(r"examples/(?:two_machines.sh|slurm.sbatch) (.*)", COMMANDS)]
    assert {command for command, _ in shown} == {"train", "study", "predict"}
    for command, options in shown:
        assert cli.main([command, "--help"]) == 0
        listed = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in listed, f"{command} has no {option}"


def test_each_example_is_shown_by_the_command_at_its_own_head() -> None:
    for example in (TWO_MACHINES, SLURM, RAY):
        comments = [line.removeprefix("#").strip() for line in example.splitlines() if line.startswith("#   ")]
        assert comments
        assert set(comments) <= set(COMMANDS.splitlines())


def test_it_explains_every_variable_of_the_script_with_its_default() -> None:
    defaults = dict(re.findall(r"^([A-Z]+)=\$\{\1:[-?]([^}]*)\}", TWO_MACHINES, flags=re.MULTILINE))
    table = GUIDE[GUIDE.index("| `FIRST`") :].split("\n\n")[0]
    explained = dict(re.findall(r"^\| `([A-Z]+)` \| (.*) \|$", table, flags=re.MULTILINE))
    assert list(explained) == list(defaults)
    for name in ("PORT", "INTERFACE", "MACHINES", "THREADS"):
        assert re.search(rf"\b{defaults[name]}\b", explained[name])


def test_its_ports_are_those_of_the_examples() -> None:
    first, spread = map(int, re.findall(r"port=\$\(\((\d+) \+ SLURM_JOB_ID % (\d+)\)\)", SLURM)[0])
    assert f"| {first} to {first + spread - 1}, by the number of the job |" in GUIDE
    (head,) = re.findall(r"--head --port=(\d+)", RAY)
    assert f"ray start --head --port={head}\n" in COMMANDS
    assert f"$RAY_HEAD_IP:{head}" in RAY
    assert f"| Ray | {head}, " in GUIDE


def test_what_it_says_of_a_missing_address_is_what_the_script_says() -> None:
    assert "$INTERFACE has no IPv4 address" in TWO_MACHINES
    assert "`eth0 has no IPv4 address`" in GUIDE


def test_what_it_says_of_attempts_is_what_the_examples_ask_for() -> None:
    for example in (TWO_MACHINES, SLURM):
        assert "--max-restarts 3 " in example
    assert "starts a failed training three times more" in GUIDE
