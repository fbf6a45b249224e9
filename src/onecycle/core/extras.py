"""Optional packages, which pyproject.toml lists as extras."""

from importlib.util import find_spec

from onecycle.core.errors import InputError


def require(extra: str, *packages: str) -> None:
    """Check that `packages` are importable. `pip install 'onecycle[<extra>]'` installs them.

    Raises:
        InputError: when packages are missing. The message lists them.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"this needs {' and '.join(missing)}; run pip install 'onecycle[{extra}]'")
