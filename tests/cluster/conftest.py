"""Fixtures that the cluster tests share, and a summary of the setups that could not be started."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hosts import Host, NotStarted, hosts
from ray_nodes import Operator, hosts_by_ssh, ray_nodes
from slurm import Slurm, slurm
from small_training import on_one_machine

Setup = TypeVar("Setup")
_not_started: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", action="store_true", help="test Slurm, Ray and two machines, not only virtual hosts")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    wanted = config.getoption("--cluster", default=False) or collection_path.name == "test_hosts.py"
    return None if wanted or collection_path.suffix != ".py" else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--cluster", default=False):
        terminalreporter.section("setups")
        for name, reason in _not_started.items():
            terminalreporter.line(f"not started: {name}: {reason}")
        if not _not_started:
            terminalreporter.line("all setups were started")


def _entered(stack: ExitStack, name: str, setup: AbstractContextManager[Setup]) -> Setup:
    try:
        return stack.enter_context(setup)
    except NotStarted as reason:
        _not_started[name] = str(reason)
        pytest.skip(f"{name}: {reason}")


@pytest.fixture
def start_hosts(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    """A function that starts virtual hosts. It takes the options of `hosts.hosts`. A test may call it only once."""
    with ExitStack() as stack:
        yield lambda number, **links: _entered(stack, "hosts", hosts(number, tmp_path, **links))


@pytest.fixture
def slurm_cluster(start_hosts: Callable[..., list[Host]], tmp_path: Path) -> Iterator[Slurm]:
    with ExitStack() as stack:
        yield _entered(stack, "Slurm", slurm(start_hosts(2), tmp_path))


@pytest.fixture
def operator(start_hosts: Callable[..., list[Host]], tmp_path: Path) -> Iterator[Operator]:
    with ExitStack() as stack:
        yield _entered(stack, "machines for `ray up`", hosts_by_ssh(start_hosts(3), tmp_path))


@pytest.fixture(scope="module")
def ray_cluster(ray_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Host], str]]:
    """Three hosts, which are the nodes of a Ray cluster that requires a token, and the address of the cluster."""
    with ExitStack() as stack:
        nodes = _entered(stack, "hosts", hosts(3, tmp_path_factory.mktemp("ray")))
        yield nodes, _entered(stack, "Ray", ray_nodes(nodes))


@pytest.fixture(scope="session")
def undisturbed(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the small training run in one process on one machine, without a cluster."""
    return on_one_machine(tmp_path_factory.mktemp("undisturbed"))
