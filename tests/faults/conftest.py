"""Fixtures for tests/faults, and the figures that `make faults` publishes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import Fault
from shared import made_once
from small_runs import PATIENCE, SMALL, Reference, Workspace, bits

from onecycle.compute import hardware
from onecycle.compute.plan import EAGER
from onecycle.run import environment

RECORD = Path(__file__).parents[2] / "results" / "reliability.json"

BAD_INPUTS = "bad inputs refused in one line"
_counted: dict[str, Any] = {BAD_INPUTS: 0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="test all faults; write results/reliability.json")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "test_bad_input.py" in report.nodeid:
        _counted[BAD_INPUTS] += 1


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--whole", default=False))


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest, whole: bool) -> Iterator[dict[str, Any]]:
    """Counts that the tests increase. They are written to `RECORD` if all tests pass with `--whole`."""
    yield _counted
    if whole and not request.session.testsfailed and not request.config.option.keyword:
        described = environment.describe(hardware.detect(), EAGER)
        del described["compute_plan"]  # each run has a compute plan of its own
        RECORD.write_text(json.dumps({**_counted, "environment": described}, indent=2) + "\n")


@pytest.fixture
def new_workspace(tmp_path: Path) -> Callable[[object], Workspace]:
    """A function that creates a workspace with the given name."""

    def make(name: object) -> Workspace:
        path = tmp_path / str(name)
        path.mkdir()
        return Workspace(path)

    return make


@pytest.fixture
def workspace(new_workspace: Callable[[object], Workspace]) -> Workspace:
    return new_workspace("workspace")


@pytest.fixture(scope="session")
def reference(for_all_workers: Path) -> Reference:
    def make(folder: Path) -> None:
        first, second = Workspace(folder / "first"), Workspace(folder / "second")
        first.path.mkdir()
        assert first.onecycle(*SMALL).code == 0  # the first run measures compute plans and caches the fastest plan
        second.path.mkdir()
        noted = [Fault("os.replace", "note"), Fault("os.fsync", "note")]
        ended = second.onecycle(*SMALL, faults=noted, save_seconds=PATIENCE)
        assert ended.code == 0, ended.output
        assert bits(first) == bits(second), "two runs with the same seed differ"
        (folder / "seconds").write_text(str(ended.seconds))

    folder = made_once(for_all_workers / "reference", make)
    workspace = Workspace(folder / "second")
    return Reference(bits(workspace), float((folder / "seconds").read_text()), workspace)
