"""Serve a trained network as a web page and an HTTP API. The command `onecycle serve` calls this."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecycle.core.extras import require

if TYPE_CHECKING:  # decoder processes import this package, and must not import torch
    from onecycle.predict.predictor import Predictor


def serve(predictor: "Predictor", name: str, *, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve at `host` and `port` until a signal stops the process. `name` is the title of the page.

    `allowed_hosts` are further names of the service, for example its public name if it is behind a proxy. The names of
    this machine are always allowed.

    Raises:
        InputError: when a package is missing, the address is not available, or an allowed host is not a host name.
    """
    require("serve", "fastapi", "fastapi_offline", "python_multipart", "uvicorn")
    from onecycle.serve.server import run  # `server` needs the packages that `require` checks

    run(predictor, name, host=host, port=port, allowed_hosts=allowed_hosts)
