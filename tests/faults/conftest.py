"""What the tests of faults share; the figures that `make faults` publishes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import Fault
from shared import made_once
from small_runs import PATIENCE, SMALL, Place, Reference, bits

from onecycle.compute import hardware
from onecycle.compute.plan import PLAIN
from onecycle.run import environment

RECORD = Path(__file__).parents[2] / "results" / "reliability.json"

BAD_INPUTS = "bad inputs refused in one line"
_counted: dict[str, Any] = {BAD_INPUTS: 0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="all faults, not a few; writes results/reliability.json")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "test_bad_input.py" in report.nodeid:
        _counted[BAD_INPUTS] += 1


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--whole", default=False))


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest, whole: bool) -> Iterator[dict[str, Any]]:
    """What the tests have counted; a whole suite that passes writes it down."""
    yield _counted
    if whole and not request.session.testsfailed and not request.config.option.keyword:
        described = environment.describe(hardware.detect(), PLAIN)
        del described["acceleration"]  # each run has its own
        RECORD.write_text(json.dumps({**_counted, "environment": described}, indent=2) + "\n")


@pytest.fixture
def new_place(tmp_path: Path) -> Callable[[object], Place]:
    """Makes a working folder of that name."""

    def make(name: object) -> Place:
        path = tmp_path / str(name)
        path.mkdir()
        return Place(path)

    return make


@pytest.fixture
def place(new_place: Callable[[object], Place]) -> Place:
    return new_place("place")


@pytest.fixture(scope="session")
def reference(for_all_workers: Path) -> Reference:
    def make(folder: Path) -> None:
        first, second = Place(folder / "first"), Place(folder / "second")
        first.path.mkdir()
        assert first.onecycle(*SMALL).code == 0  # it measures how to compute, and remembers
        second.path.mkdir()
        noted = [Fault("os.replace", "note"), Fault("os.fsync", "note")]
        ended = second.onecycle(*SMALL, faults=noted, save_seconds=PATIENCE)
        assert ended.code == 0, ended.said
        assert bits(first) == bits(second), "two runs with one seed differ"
        (folder / "seconds").write_text(str(ended.seconds))

    folder = made_once(for_all_workers / "reference", make)
    place = Place(folder / "second")
    return Reference(bits(place), float((folder / "seconds").read_text()), place)
