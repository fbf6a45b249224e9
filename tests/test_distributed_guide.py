"""docs/distributed.md agrees with the examples and the source code. tests/cluster runs the examples."""

import re
from pathlib import Path

import pytest

from onecycle import cli
from onecycle.core.errors import InputError
from onecycle.distributed import consistency, heartbeat, process_group

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "distributed.md").read_text()
TWO_MACHINES, SLURM, RAY = (
    (ROOT / "examples" / name).read_text() for name in ("two_machines.sh", "slurm.sbatch", "ray-cluster.yaml")
)
COMMANDS = "\n".join(re.findall(r"```\n(.*?)```", GUIDE, flags=re.DOTALL))


def test_every_file_in_the_guide_exists() -> None:
    files = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert files
    for file in files + [f"../{path}" for path in re.findall(r"examples/[\w.-]+", GUIDE)]:
        assert (ROOT / "docs" / file).exists(), file


def test_every_option_in_the_guide_is_an_option_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"onecycle (train|study|predict) ([^`\n]*)", GUIDE)
    commands += [
        ("train", options) for options in re.findall(r"examples/(?:two_machines.sh|slurm.sbatch) (.*)", COMMANDS)
    ]
    assert {command for command, _ in commands} == {"train", "study", "predict"}
    for command, options in commands:
        assert cli.main([command, "--help-all"]) == 0
        help_text = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in help_text, f"{command} has no {option}"


def test_the_commands_at_the_top_of_each_example_are_in_the_guide() -> None:
    for example in (TWO_MACHINES, SLURM, RAY):
        comments = [line.removeprefix("#").strip() for line in example.splitlines() if line.startswith("#   ")]
        assert comments
        assert set(comments) <= set(COMMANDS.splitlines())


def test_the_guide_explains_every_variable_of_the_script_with_its_default() -> None:
    defaults = dict(re.findall(r"^([A-Z]+)=\$\{\1:[-?]([^}]*)\}", TWO_MACHINES, flags=re.MULTILINE))
    table = GUIDE[GUIDE.index("| `FIRST`") :].split("\n\n")[0]
    explained = dict(re.findall(r"^\| `([A-Z]+)` \| (.*) \|$", table, flags=re.MULTILINE))
    assert list(explained) == list(defaults)
    for name in ("PORT", "INTERFACE", "MACHINES", "THREADS"):
        assert re.search(rf"\bdefault {defaults[name]}\b", explained[name])


def test_the_ports_in_the_guide_are_those_of_the_examples() -> None:
    first, count = map(int, re.findall(r"port=\$\(\((\d+) \+ SLURM_JOB_ID % (\d+)\)\)", SLURM)[0])
    assert f"| {first} to {first + count - 1}, from the job number |" in GUIDE
    (head,) = re.findall(r"--head --port=(\d+)", RAY)
    assert f"ray start --head --port={head}\n" in COMMANDS
    assert f"$RAY_HEAD_IP:{head}" in RAY
    assert f"| Ray | {head}, " in GUIDE


def test_the_guide_quotes_the_script_on_a_missing_address() -> None:
    assert "$INTERFACE has no IPv4 address" in TWO_MACHINES
    assert "`eth0 has no IPv4 address`" in GUIDE


def test_the_number_of_restarts_in_the_guide_is_that_of_the_examples() -> None:
    for example in (TWO_MACHINES, SLURM):
        assert "--max-restarts 3 " in example
    assert "torchrun restarts a failed run three times" in GUIDE


def test_the_guide_quotes_the_error_on_shards_that_cannot_be_shared() -> None:
    with pytest.raises(InputError) as error:
        consistency.require_divisible(shards=4, processes=3)
    (quoted,) = re.findall(r"`(--shards is 4, [^`]*)`", GUIDE)
    assert str(error.value).startswith(f"{quoted};")


@pytest.mark.parametrize(
    ("quoted", "source"),
    [
        ("waiting for rank 1 (…)", "waiting for {names}"),
        ("rank 1 (…) is gone", "{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone"),
        ("rank 1 (…) did not answer for 55 s", "{' and '.join(silent)} did not answer for {SILENT_SECONDS:.0f} s"),
        ("rank 1 (…) has made no progress for 55 s", "has made no progress for {SILENT_SECONDS:.0f} s"),
        (
            "192.168.1.10:…, through which the processes find each other, has not answered for 55 s",
            "through which the processes find each other, has not answered for {SILENT_SECONDS:.0f} s",
        ),
        (
            "the processes are alive, but they cannot connect through the network interface …",
            "they cannot connect through the network interface {interface}",
        ),
        (
            "not all of the 2 processes started within 300 s",
            "not all of the {self.size} processes started within {START_SECONDS:.0f} s",
        ),
        ("the processes differ: …", "the processes differ: {differences}"),
    ],
)
def test_the_guide_quotes_the_messages_of_the_source(quoted: str, source: str) -> None:
    assert (heartbeat.SILENT_SECONDS, heartbeat.START_SECONDS) == (55, 300)
    assert f"| `{quoted}` |" in GUIDE
    text = "".join(Path(module.__file__ or "").read_text() for module in (heartbeat, process_group, consistency))
    assert source in re.sub(r'" *\n *f?"', "", text)
