"""The option `--minutes`, and real run folders to mutate."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_runs import Folders, train
from serve.conftest import service  # noqa: F401  # a fixture
from shared import made_once


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=0, help="generate new inputs for this many minutes in each test")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Callable[[Callable[[], None]], None]:
    """Runs a Hypothesis test: once, or again and again for as long as `--minutes` says, also after a failure."""
    minutes = request.config.getoption("--minutes", default=0)

    def run(test: Any) -> None:
        inputs, failures, ends = 0, [], time.monotonic() + 60 * minutes
        inner_test = test.hypothesis.inner_test

        @functools.wraps(inner_test)
        def counted(*arguments: Any, **named: Any) -> None:
            nonlocal inputs
            inputs += 1
            inner_test(*arguments, **named)

        test.hypothesis.inner_test = counted
        while True:
            try:
                test()
            except Exception as failure:
                if not minutes:
                    raise
                failures.append(failure)
            if time.monotonic() >= ends:
                break
        print(f"{request.node.name}: {inputs:,} inputs, {len(failures)} failures")
        if failures:
            raise ExceptionGroup("these inputs are not handled", failures)

    return run


@pytest.fixture(scope="session")
def folders(for_all_workers: Path) -> Folders:
    folder = made_once(for_all_workers / "fuzzed", train)
    (study,) = folder.glob("studies/*")
    (stopped,) = folder.glob("stopped/*")
    return Folders(study, study / "baseline" / "seed-0", stopped)
