"""Packages that only some commands need, named in pyproject.toml as extras."""

from importlib.util import find_spec

from onecycle.core.errors import InputError


def require(extra: str, *packages: str) -> None:
    """Refuse to go on without `packages`, which the extra installs.

    Raises:
        InputError: when one is not installed.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"this needs {' and '.join(missing)}; pip install 'onecycle[{extra}]'")
