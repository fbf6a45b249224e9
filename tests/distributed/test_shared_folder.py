from pathlib import Path

from several import in_processes

from onecycle.core.errors import InputError
from onecycle.distributed.process_group import ProcessGroup
from onecycle.run import resume
from onecycle.storage.run_folder import RunFolder


def share_and_fail_on_rank_0(group: ProcessGroup, folder: Path) -> None:
    """Share a run folder that only rank 1 has, as if the ranks were on two machines. Then fail on rank 0."""
    path = folder / f"machine {group.rank}" / "runs" / "one"
    if group.rank == 1:
        run = RunFolder.create(path)
        run.config.write_text("{}")
        run.lr_finder.write_text("[1, 2]")
    with resume.shared_folder(path, group) as shared:
        assert group.main_rank == 1
        assert shared.config.read_text() == "{}" and shared.lr_finder.read_text() == "[1, 2]"
        if group.rank == 0:
            raise InputError(f"{shared.path} was trained on other data")
        group.all_gather_object(None)


def test_the_process_with_the_run_folder_becomes_the_main_one_and_errors_name_its_folder(tmp_path: Path) -> None:
    _, second = in_processes(2, share_and_fail_on_rank_0, tmp_path)
    run = tmp_path / "machine 1" / "runs" / "one"
    assert second.startswith("InputError: rank 0 (") and second.endswith(f"): {run} was trained on other data")
