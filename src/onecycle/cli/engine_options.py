"""The options that say where a command's work is done."""

from dataclasses import dataclass
from typing import Literal

from onecycle.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Where:
    """This process, or a Ray cluster."""

    engine: Literal["local", "ray"] = "local"
    """Where it is done: here, one after another, or on the nodes of a Ray cluster at once."""
    address: str | None = None
    """The Ray cluster's, host:port; when left out, $RAY_ADDRESS, or a Ray of this machine alone."""

    def __post_init__(self) -> None:
        if self.address and self.engine != "ray":
            raise InputError("--address is a Ray cluster's; give --engine ray, too")


HERE = Where()
