"""The command line: `onecycle train | find-lr | study | check | evaluate | report | predict | …`."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from onecycle.cli import inspect, predict, train  # noqa: F401  # importing them registers their commands
from onecycle.cli.app import app
from onecycle.cli.options import choose_shown_groups
from onecycle.core.errors import OnecycleError, ReportedElsewhere
from onecycle.core.formatting import without_controls
from onecycle.core.signals import Interrupted, watched

atexit.register(gc.freeze)  # the process ends 0.2 s sooner, because the last garbage collection skips all objects


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. An expected error is printed as one line and gives code 2."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    if debug:
        tokens.remove("--debug")
    all_groups = "--help-all" in tokens
    if all_groups:
        tokens[tokens.index("--help-all")] = "--help"
    choose_shown_groups(tokens[0] if tokens else "", all_groups=all_groups)
    # If the caller has closed standard error, a file that is opened later could get descriptor 2 and receive messages.
    if sys.stderr is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w")
    if sys.stdout is None:
        print("onecycle: standard output is closed; redirect it, for example to /dev/null", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # print undecodable bytes in file names as escapes
    try:
        with watched():
            return _run(tokens, debug)
    except ReportedElsewhere as ended:
        return ended.exit_code
    except Interrupted as stopped:
        print("; ".join(["onecycle: interrupted", *filter(None, [without_controls(str(stopped))])]), file=sys.stderr)
        return stopped.exit_code


def _run(tokens: list[str], debug: bool) -> int:
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # so that an error in writing the last lines is caught here
        return result if isinstance(result, int) else 0
    except (OnecycleError, CycloptsError) as error:
        if debug:
            raise
        # Join the lines, but keep the spaces inside them: a file name may have several in a row.
        lines = filter(None, map(str.strip, str(error).splitlines()))
        print("onecycle:", *map(without_controls, lines), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        print(f"onecycle: {error.filename or 'the output'}: {error.strerror}; check it", file=sys.stderr)
        return 2
