"""The console that commands print to."""

import os
import signal
import sys
import threading

from rich.console import Console

from onecycle.core.signals import Interrupted, received

_SIGPIPE = getattr(signal, "SIGPIPE", signal.SIGTERM)  # Windows has no SIGPIPE


class OutputConsole(Console):
    """Rich's console. If the program that reads the output has ended, printing interrupts the command, as Ctrl-C does.

    Rich itself would end the process silently.

    Raises:
        Interrupted: raised by printing in the main thread, when the reader has ended. Later calls print nothing.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Python writes what is left in the buffer of standard output when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if threading.current_thread() is threading.main_thread():
            raise Interrupted(_SIGPIPE)
        if not received():  # a second signal would end the process at once
            signal.raise_signal(signal.SIGINT)  # a progress bar prints in a thread of its own
