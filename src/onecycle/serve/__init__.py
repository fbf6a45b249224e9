"""Serve a trained network as a web page and an HTTP API. The command `onecycle serve` calls this."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecycle.core.extras import require

if TYPE_CHECKING:  # the processes that decode images start without torch
    from onecycle.predict.predictor import Predictor


def serve(predictor: "Predictor", name: str, *, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve at `host` and `port` until a signal stops the process. `name` is the title of the page.

    `allowed_hosts` are names of the service in addition to the names of this machine, for example behind a proxy.

    Raises:
        InputError: when a package is missing, the address is not available, or an allowed host is not a host name.
    """
    require("serve", "fastapi", "fastapi_offline", "python_multipart", "uvicorn")
    from onecycle.serve.server import run  # imported after the check, because it needs these packages

    run(predictor, name, host=host, port=port, allowed_hosts=allowed_hosts)
