"""The store of torch.distributed through which the processes of a run find each other and exchange small values."""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

from onecycle.core.errors import InputError
from onecycle.distributed.job import STORE_FILE


@dataclass(frozen=True, kw_only=True)
class StorePlace:
    """The place of the store: a file, or the address of the process that hosts the store.

    The process with the id `launcher` created the file's folder. It removes the folder when it ends.
    """

    file: str | None = None
    launcher: int = 0
    host: str = ""
    port: int = 0
    is_hosted_here: bool = False

    @classmethod
    def of_job(cls, rank: int) -> Self:
        """The place of the store, from the environment variables of this process, which has the rank `rank`.

        Raises:
            InputError: when the address of the store is missing.
        """
        if file := os.environ.get(STORE_FILE):
            return cls(file=file, launcher=os.getppid())
        is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        if not (host and port.isdecimal()):
            raise InputError(
                "RANK and WORLD_SIZE are set, but not both MASTER_ADDR and MASTER_PORT; start the processes with "
                "torchrun, or unset RANK and WORLD_SIZE"
            )
        return cls(host=host, port=int(port), is_hosted_here=rank == 0 and not is_agents)

    def __str__(self) -> str:
        return self.file or f"{self.host}:{self.port}"

    @property
    def is_abandoned(self) -> bool:
        """Whether the launcher has ended. This process must then end."""
        return self.file is not None and os.getppid() != self.launcher

    def connect(self, *, size: int, timeout: timedelta, is_server: bool = False) -> Any:
        """Connect to the store of `size` processes. With `is_server`, host it until the returned object is deleted.

        Raises:
            RuntimeError: when the store does not answer within `timeout`, or cannot be started.
        """
        if self.file:
            return FileStore(self.file)
        listener = self.listener() if is_server else None
        return TCPStore(
            self.host,
            self.port,
            size,
            is_server,
            timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener else None,
        )

    def listener(self) -> socket.socket | None:
        """A socket that listens at the address of the host only, or None if the store must listen at all addresses.

        The store must listen at all addresses if the name of the host resolves to

        - no address,
        - an address that this machine does not have, such as a router's, or
        - a loopback address, but `host` is neither "localhost" nor this address. For example, /etc/hosts may map the
          machine's own name to a loopback address.

        Raises:
            RuntimeError: when the port is in use.
        """
        try:
            address = socket.gethostbyname(self.host)
        except OSError:
            return None
        if ipaddress.ip_address(address).is_loopback and self.host not in (address, "localhost"):
            return None
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, self.port))
            listening.listen()
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise RuntimeError(f"cannot listen at {address}:{self.port} ({error.strerror})") from error
        return listening
