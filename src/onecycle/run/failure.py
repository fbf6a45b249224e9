"""What a run that does not come to its end says: in a line, and on its page."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from onecycle.core.config import Config
from onecycle.core.errors import InputError, LostError
from onecycle.core.files import NotWrittenError
from onecycle.core.signals import Interrupted, held
from onecycle.distributed import ranks
from onecycle.run import existing
from onecycle.storage.run_folder import RunFolder
from onecycle.train.nonfinite import NonFiniteError


@contextmanager
def resumable(folder: RunFolder, config: Config) -> Iterator[None]:
    """Say how to go on when the run in `folder` does not come to its end, and write a page that says so, too."""
    how = f"`onecycle train --resume {folder.path}` goes on"
    try:
        yield
    except Interrupted as stopped:
        _write_page(folder, config, f"It was interrupted by {signal.Signals(stopped.number).name}; {how}.")
        raise Interrupted(stopped.number, how) from None
    except (NotWrittenError, LostError) as error:
        if not ranks.current().leads:
            raise
        why = f"{error}. What was saved is whole: {how} from there" if folder.saved else str(error)
        if isinstance(error, LostError):  # else there may be no room for a page
            _write_page(folder, config, f"{why[0].upper()}{why[1:]}.")
        raise InputError(why) from error


@contextmanager
def told_on_its_page(folder: RunFolder, config: Config, lr_max: float) -> Iterator[None]:
    """Write a page that says which error of its own ended the training.

    Raises:
        InputError: when a loss or a gradient was not finite; else what ended it.
    """
    try:
        yield
    except NonFiniteError as error:
        kept = f". What was saved before is kept in {folder.path}, but would come to this again" if folder.saved else ""
        ended = f"{error}, with a learning rate up to {lr_max:.2e}; give a lower --lr-max{kept}"
        _write_page(folder, config, f"It was ended by an error: {ended}.")
        raise InputError(ended) from error
    except (NotWrittenError, LostError):
        raise
    except Exception as error:
        _write_page(folder, config, f"It was ended by an error: {type(error).__name__}: {error}.")
        raise


def _write_page(folder: RunFolder, config: Config, why: str) -> None:
    """The page about a run that did not come to its end. Where that fails, what ended the run is what is told."""
    if config.report and folder.config.exists() and ranks.current().leads:
        with held(), suppress(Exception):
            folder.write_json(folder.stopped, {"why": why})
            existing.write_page(folder)
