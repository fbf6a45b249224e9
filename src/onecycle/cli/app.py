"""The command line's application, on which every command is registered."""

from importlib.metadata import version

from cyclopts import App, Parameter

from onecycle.cli.defaults import fill_in

app = App(
    name="onecycle",
    help="Train a small, strong image classifier with one cycle of the learning rate. With --debug, an error shows its "
    "traceback.",
    version=version("onecycle"),
    default_parameter=Parameter(negative_iterable=(), negative_none=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.config = (fill_in,)
