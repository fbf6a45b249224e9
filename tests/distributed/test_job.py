import pytest

from onecycle.cli import main
from onecycle.distributed import job


@pytest.fixture(autouse=True)
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_torchrun_did_not_start_has_no_job() -> None:
    assert not job.is_part()
    assert job.name() is None
    assert not job.may_have_started_before()


@pytest.mark.parametrize(
    ("name", "restarts", "may_have_started_before"),
    [("none", "0", False), ("none", "1", True), ("night", "0", True), ("night", "2", True)],
)
def test_a_job_may_have_started_before_if_it_has_a_name_or_was_restarted(
    monkeypatch: pytest.MonkeyPatch, name: str, restarts: str, may_have_started_before: bool
) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": name, "TORCHELASTIC_RESTART_COUNT": restarts}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert job.is_part()
    assert job.name() == name
    assert job.may_have_started_before() is may_have_started_before


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"WORLD_SIZE": "1"}, ["--processes", "4"], "--processes is 4, but RANK and WORLD_SIZE are set"),
        ({"WORLD_SIZE": "1"}, ["--processes", "-3"], "--processes is -3, but RANK and WORLD_SIZE are set"),
        ({"WORLD_SIZE": "2"}, [], "but not both MASTER_ADDR and MASTER_PORT; start the processes with torchrun"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "x"}, [], "but not both MASTER_ADDR and"),
    ],
)
def test_variables_of_a_launcher_that_do_not_fit_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    options: list[str],
    message: str,
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "ONECYCLE_STORE_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--data", "digits", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
