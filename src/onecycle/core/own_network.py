"""The names of networks of the user's own: module:function or file.py:function.

`models.own_network` imports the code that such a name leads to.
"""

import re
import shlex

from onecycle.core.errors import InputError

_NAME = re.compile(r"[^\0]{1,300}:[A-Za-z_][\w.]{0,100}")


def is_own_network(network: str) -> bool:
    """Whether `network` names a function of the user's."""
    return bool(_NAME.fullmatch(network)) and network.isprintable()


def option_of(network: str) -> str:
    """The option that a command needs to load `network`, with a space before it. Empty for an included network."""
    return f" --network {shlex.quote(network)}" if is_own_network(network) else ""


def require_consent(network: str, named: str | None, where: str) -> None:
    """Check that the user has named the own network that `where`, a run or a file, names, before its code is imported.

    The file may come from someone else, so the name in it is not enough.

    Raises:
        InputError: when `network` is an own network, and not the `named` one.
    """
    if is_own_network(network) and network != named:
        raise InputError(
            f"{where} has a network of its own, whose code is loaded only if you name it; if you trust this code, "
            f"add{option_of(network)}"
        )
