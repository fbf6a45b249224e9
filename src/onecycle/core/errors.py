"""Errors that the command line prints as one line: bad input, failed writes, lost processes."""


class OnecycleError(Exception):
    """Base class of errors that the command line prints as one line, without a traceback. The exit code is 2.

    The message says what is wrong, where, and what to do.
    """


class InputError(OnecycleError, ValueError):
    """An option, a file, a data set or a run folder that the user gave cannot be used."""


class StorageError(OnecycleError):
    """A file or a folder cannot be written, or another process has locked it. Existing files stay intact."""


class PeerError(OnecycleError):
    """Another process of this run is lost, stalled or unreachable."""


class ReportedElsewhere(Exception):
    """This process ends with `exit_code`. Another process reports the reason."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process reports the reason")
        self.exit_code = exit_code
