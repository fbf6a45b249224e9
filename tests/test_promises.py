"""Every test that docs/promises.md lists exists, and the listed command runs the test."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
LONG = "pytest.mark.long"

# The tests that each command runs completely, according to the Makefile. `make test` omits tests marked as long.
WHOLE = {
    "make faults": ("tests/faults/", "tests/distributed/", "tests/test_install.py"),
    "make cluster-test": ("tests/cluster/", "tests/study/test_study_on_ray.py", "tests/predict/test_bulk_on_ray.py"),
    "make benchmarks-test": (
        *(
            "tests/test_benchmarks.py",
            "tests/end_to_end/",
            "tests/predict/test_onnx.py",
            "tests/predict/test_stream.py",
        ),
        "tests/compute/",
    ),
}


class Row(NamedTuple):
    promise: str
    tests: list[str]
    runs_in: list[str]


def rows_of(page: str) -> list[Row]:
    lines = re.findall(r"^\| (?!Promise \|)(.+) \| (`tests/.+`) \| (`make .+`) \|$", page, flags=re.MULTILINE)
    return [Row(promise, re.findall("`(.+?)`", tests), re.findall("`(.+?)`", where)) for promise, tests, where in lines]


ROWS = rows_of(PAGE)


@cache
def decorators(file: str) -> dict[str, list[str]]:
    """The decorators of each test function in a file."""
    functions = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return {
        function.name: [ast.unparse(decorator) for decorator in function.decorator_list]
        for function in functions
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
    }


def decorators_of(test: str) -> list[str]:
    file, name = test.split("::")
    return decorators(file)[name]


def in_the_ordinary_suite(test: str) -> bool:
    on_machines = test.startswith("tests/cluster/") and not test.startswith("tests/cluster/test_hosts.py::")
    return not on_machines and LONG not in decorators_of(test)


def has_long_cases(test: str) -> bool:
    return any(LONG in decorator for decorator in decorators_of(test))


def commands_that_run_whole(test: str) -> set[str]:
    return {command for command, places in WHOLE.items() if test.startswith(places)}


def test_every_row_of_the_page_is_read() -> None:
    headings = PAGE.count("\n| Promise | Test | Runs in |\n|---|---|---|\n")
    assert headings == PAGE.count("\n## ") > 0
    assert len(ROWS) == len(re.findall(r"^\|", PAGE, flags=re.MULTILINE)) - 2 * headings


def test_no_promise_is_there_twice() -> None:
    assert len({row.promise for row in ROWS}) == len(ROWS)


def test_every_promise_names_a_test_that_exists() -> None:
    for row in ROWS:
        for test in row.tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file(), test
            assert name in decorators(file), test


def test_make_test_is_named_where_it_runs_a_test_of_the_row_and_only_there() -> None:
    for row in ROWS:
        assert ("make test" in row.runs_in) == any(map(in_the_ordinary_suite, row.tests)), row.promise


def test_what_make_test_leaves_out_is_named_with_the_command_that_runs_it() -> None:
    for row in ROWS:
        for test in row.tests:
            if has_long_cases(test) or not in_the_ordinary_suite(test):
                assert commands_that_run_whole(test) & set(row.runs_in), test


def test_every_command_that_is_named_runs_a_test_of_the_row() -> None:
    for row in ROWS:
        run = set[str]().union(*map(commands_that_run_whole, row.tests))
        assert set(row.runs_in) <= run | {"make test"}, row.promise
        assert len(set(row.runs_in)) == len(row.runs_in), row.promise


def test_the_commands_run_what_this_file_says_they_do() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command, places in WHOLE.items():
        (recipe,) = re.findall(rf"^{command.removeprefix('make ')}:.*\n\t(.*)$", makefile, flags=re.MULTILINE)
        assert {place.rstrip("/") for place in places} == set(re.findall(r"tests/\S+", recipe))
