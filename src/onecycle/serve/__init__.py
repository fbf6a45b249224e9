"""A trained network on a page of this machine: `onecycle serve`."""

from importlib.util import find_spec

from onecycle.core.errors import InputError
from onecycle.predict.predictor import Predictor

_NEEDED = {name: name.replace("_", "-") for name in ("fastapi", "fastapi_offline", "python_multipart", "uvicorn")}


def serve(predictor: Predictor, name: str, *, host: str, port: int) -> None:
    """Answer at `host` and `port` until the process is told to stop; `name` is what the page calls the network.

    Raises:
        InputError: when a library is missing, or the address cannot be had.
    """
    if missing := [library for module, library in _NEEDED.items() if not find_spec(module)]:
        raise InputError(f"the page needs {', '.join(missing)}, not installed; pip install {' '.join(missing)}")
    from onecycle.serve.server import run  # only now: it loads these

    run(predictor, name, host=host, port=port)
