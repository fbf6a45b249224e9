"""The errors that are meant for people."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class LostError(InputError):
    """Another process that computes this run has gone, hangs or cannot be reached."""


class Silent(Exception):
    """This process ends with `exit_code`, and another one tells why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process tells why")
        self.exit_code = exit_code
