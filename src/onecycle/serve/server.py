"""The process that answers: where it listens, whom it hears out, and when it gives up on a client."""

import asyncio
import ipaddress
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onecycle.errors import InputError
from onecycle.predictor import Predictor
from onecycle.serve.app import make_app
from onecycle.serve.limits import LIMITS, Limits

_STOP_SECONDS = 5  # for what is being answered, when the service is told to stop
_KEEP_ALIVE_SECONDS = 5


def run(predictor: Predictor, name: str, *, host: str, port: int, limits: Limits = LIMITS) -> None:
    """Answer at `host` and `port` until the process is told to stop.

    Raises:
        InputError: when the address cannot be had.
    """
    listening = _listen(host, port)
    predictor.acceleration.apply()
    # On this machine alone: a page of another site that has its own name lead here is not answered.
    hosts = ("localhost", "127.0.0.1", "[::1]", host) if _is_of_this_machine(host) else ("*",)
    app = make_app(predictor, name, limits=limits, hosts=hosts)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=_protocol(limits.header_seconds),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"{name}: http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C stops)", flush=True)
    with listening:
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; give another --host or --port") from error
    return listening


def _is_of_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _protocol(header_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for the head of a request as long as a client likes, with an end to that."""

    class Impatient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def handle_events(self) -> None:
            super().handle_events()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unwatch()

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._unwatch()
            elif self._deadline is None:  # a head that arrives bit by bit moves no deadline
                self._deadline = self.loop.call_later(header_seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._deadline:
                self._deadline.cancel()
                self._deadline = None

    return Impatient
