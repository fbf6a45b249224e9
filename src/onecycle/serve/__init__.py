"""Serve a trained network as a web page and an HTTP API. The command `onecycle serve` calls this."""

from onecycle.core.extras import require
from onecycle.predict.predictor import Predictor


def serve(predictor: Predictor, name: str, *, host: str, port: int) -> None:
    """Serve at `host` and `port` until a signal stops the process. `name` is the title of the page.

    Raises:
        InputError: when a package is missing, or the address is not available.
    """
    require("serve", "fastapi", "fastapi_offline", "python_multipart", "uvicorn")
    from onecycle.serve.server import run  # imported after the check, because it needs these packages

    run(predictor, name, host=host, port=port)
