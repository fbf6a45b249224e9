"""The message and the report of a run that does not end normally."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from onecycle.core.config import Config
from onecycle.core.errors import InputError, PeerError, StorageError
from onecycle.core.signals import Interrupted, held
from onecycle.distributed.process_group import ProcessGroup
from onecycle.run import finished
from onecycle.storage.run_folder import RunFolder
from onecycle.train.nonfinite import NonFiniteError


@contextmanager
def resumable(folder: RunFolder, config: Config, group: ProcessGroup) -> Iterator[None]:
    """If the run in `folder` stops early, explain in the error message and in the report how to resume it."""
    advice = f"`{folder.resume_command(config)}` continues the run"
    try:
        yield
    except Interrupted as stopped:
        reason = f"It was interrupted by {signal.Signals(stopped.number).name}; {advice}."
        _write_report(folder, config, group, reason)
        raise Interrupted(stopped.number, advice) from None
    except (StorageError, PeerError) as error:
        if not group.is_main_process:
            raise
        reason = f"{error}. The last checkpoint is intact: {advice} from there" if folder.has_checkpoint else str(error)
        if isinstance(error, PeerError):  # not after a StorageError: the disk may be too full for a report
            _write_report(folder, config, group, f"{reason[0].upper()}{reason[1:]}.")
        raise type(error)(reason) from error


@contextmanager
def failure_reported(folder: RunFolder, config: Config, group: ProcessGroup, *, lr_max: float) -> Iterator[None]:
    """When training fails, write a report that shows the error.

    Raises:
        InputError: when a loss, gradient, logit, weight or running statistic was not finite. Other errors pass through.
    """
    try:
        yield
    except NonFiniteError as error:
        kept = (
            f". The checkpoint in {folder.path} is kept, but leads to the same error" if folder.has_checkpoint else ""
        )
        reason = f"{error}, with a learning rate of up to {lr_max:.2e}; use a lower --lr-max{kept}"
        _write_report(folder, config, group, f"It ended with an error: {reason}.")
        raise InputError(reason) from error
    except (StorageError, PeerError):
        raise
    except Exception as error:
        _write_report(folder, config, group, f"It ended with an error: {type(error).__name__}: {error}.")
        raise


def _write_report(folder: RunFolder, config: Config, group: ProcessGroup, reason: str) -> None:
    """Write the report of a run that stopped early. Errors are ignored: the caller raises the original error."""
    if config.report and folder.config.exists() and group.is_main_process:
        with held(), suppress(Exception):
            folder.write_json(folder.stopped, {"why": reason})
            finished.write_report(folder)
