"""The command-line application. Every command is registered on it."""

from cyclopts import App, Parameter

from onecycle.cli.defaults import fill_in


def _version() -> str:
    from importlib.metadata import version  # imported here: at the top, this would take an eighth of the time of --help

    return version("onecycle")


app = App(
    name="onecycle",
    help="Train a small, strong image classifier with one cycle of the learning rate. Add --debug to see the traceback "
    "of an error.",
    version=_version,
    default_parameter=Parameter(negative_iterable=(), negative_none=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.config = (fill_in,)
