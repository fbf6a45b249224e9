from pathlib import Path

from several import in_processes

from onecycle.core.errors import InputError
from onecycle.distributed import ranks
from onecycle.run import resume
from onecycle.storage.run_folder import RunFolder


def refused_by_one(folder: Path) -> bool:
    """Whether this process has a copy of the run, which only the second one has; the first refuses to go on with it."""
    here = ranks.current()
    path = folder / f"machine {here.rank}" / "runs" / "one"
    if here.rank == 1:
        run = RunFolder.create(path)
        run.config.write_text("{}")
        run.lr_finder.write_text("[1, 2]")
    with resume.shared_folder(path) as found:
        assert here.leader == 1
        assert found.config.read_text() == "{}" and found.lr_finder.read_text() == "[1, 2]"
        if here.rank == 0:
            raise InputError(f"{found.path} was trained on other data")
        here.of_all(None)
    return True


def test_who_has_the_run_leads_and_the_others_name_it_as_that_one_does(tmp_path: Path) -> None:
    _, second = in_processes(2, refused_by_one, tmp_path)
    run = tmp_path / "machine 1" / "runs" / "one"
    assert second.startswith("told: rank 0 (") and second.endswith(f"): {run} was trained on other data")
