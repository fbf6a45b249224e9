"""The names of the user's own networks: module:function or file.py:function.

`models.own_network` imports the code that such a name refers to.
"""

import re
import shlex

from onecycle.core.errors import InputError

_NAME = re.compile(r"[^\0]{1,300}:[A-Za-z_][\w.]{0,100}")


def is_own_network(network: str) -> bool:
    """Whether `network` names a function in the user's code."""
    return bool(_NAME.fullmatch(network)) and network.isprintable()


def option_of(network: str) -> str:
    """A space and the option that a command needs to load `network`, or "" if `network` is an included network."""
    return f" --network {shlex.quote(network)}" if is_own_network(network) else ""


def require_consent(network: str, named: str | None, where: str) -> None:
    """Check that the user agrees to import the code of `network`.

    A run or a file gives the name `network`. The run or the file may come from someone else. Therefore the user must
    give the same name: `named` is the name that the user gave. `where` is the name of the run or the file, for the
    error message.

    Raises:
        InputError: when `network` is not an included network, and differs from `named`.
    """
    if is_own_network(network) and network != named:
        raise InputError(
            f"{where} has a network of its own, whose code is loaded only if you name it; if you trust this code, "
            f"add{option_of(network)}"
        )
