"""The server: its socket, its timeouts, and its start and end."""

import asyncio
import ipaddress
import logging
import math
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onecycle.core.errors import InputError
from onecycle.predict.predictor import Predictor
from onecycle.serve.access import host_name
from onecycle.serve.app import make_app
from onecycle.serve.limits import LIMITS, Limits

_STOP_SECONDS = 1  # active requests have this long to finish when the service stops
_KEEP_ALIVE_SECONDS = 5
_LOG_SECONDS = 60  # wait this long before the message about the connection limit is printed again
# The beginnings of messages of uvicorn that are hidden.
_HIDDEN = (
    "Cancel %s running task(s)",
    "Invalid HTTP request",
    "Unsupported upgrade request",
    "No supported WebSocket library",
)
_LINGER_SECONDS = 1  # a client has this long to send the rest of a request that is already answered


def run(
    predictor: Predictor,
    name: str,
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> None:
    """Serve at `host` and `port` until a signal stops the process.

    Raises:
        InputError: when the address is not available, or an allowed host is not a host name.
    """
    allowed = [host_name(allowed) for allowed in allowed_hosts]
    listening = _listen(host, port)
    app = make_app(predictor, name, host=host, allowed_hosts=allowed, limits=limits)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs every malformed form
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    address = f"[{host}]" if ":" in host else host
    server = _Server(
        f"{name}: http://{address}:{listening.getsockname()[1]}/ (Ctrl-C stops)",
        uvicorn.Config(
            app,
            http=_protocol(limits),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        ),
    )
    with listening:
        if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            print(
                "onecycle: the service listens beyond this machine: everyone who can reach it can use it, without a "
                "password, and the connection is not encrypted",
                file=sys.stderr,
            )
        server.run(sockets=[listening])


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a log record of uvicorn.

    uvicorn's usual messages at shutdown are hidden. Messages about malformed requests, and about requests for another
    protocol, are also hidden, because a client could fill the disk with them.
    """
    is_end = bool(record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
    return not is_end and not str(record.msg).startswith(_HIDDEN)


class _Server(uvicorn.Server):
    """uvicorn's server. It prints `welcome` when it is ready."""

    def __init__(self, welcome: str, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._welcome, flush=True)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; it must be from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with ExitStack() as undone:
            # asyncio sets TCP_NODELAY only if the protocol is given. Without TCP_NODELAY, every response is delayed.
            listening = undone.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            undone.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; use another --host or --port") from error
    return listening


def _protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP protocol with timeouts. Without these timeouts uvicorn waits forever for a client."""
    idle: dict[H11Protocol, None] = {}  # connections that wait for a request's header; the first has waited longest
    logged_at = -math.inf

    def log_full() -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at > _LOG_SECONDS:
            logged_at = time.monotonic()
            words = f"the limit of {limits.connections:,} connections is reached; idle connections are closed"
            print(f"onecycle: {words}", file=sys.stderr, flush=True)

    class ProtocolWithTimeouts(H11Protocol):
        _waits: dict[str, asyncio.TimerHandle]

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waits = {}
            transport.set_write_buffer_limits(high=0)  # pauses writing until the client has accepted everything
            self._watch()
            if len(self.connections) > limits.connections:
                log_full()
                # Close the connection that has been idle longest, so that idle connections do not keep out clients that
                # send requests. The new connection is also in `idle`, but in the last place.
                longest_idle = next(iter(idle))
                del idle[longest_idle]
                longest_idle.transport.abort()

        def handle_events(self) -> None:
            super().handle_events()
            self._watch()

        def send_400_response(self, msg: str) -> None:
            # The body of a request may turn out to be malformed while the request is answered. uvicorn would then send
            # another response, or a body in response to HEAD. h11 refuses both, and uvicorn would print a traceback.
            if self.cycle:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            with suppress(h11.LocalProtocolError):
                super().send_400_response(msg)
            self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect("write", limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._no_longer("write")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            idle.pop(self, None)
            for wait in list(self._waits):
                self._no_longer(wait)

        def _watch(self) -> None:
            # A header that arrives byte by byte does not extend its deadline.
            if self.conn.their_state is h11.IDLE:
                idle.setdefault(self)
                self._expect("header", limits.header_seconds, self.transport.close)
            else:
                idle.pop(self, None)
                self._no_longer("header")
            # The response is complete, but the client is still sending its request.
            if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
                self._expect("rest of the body", _LINGER_SECONDS, self.transport.close)
            else:
                self._no_longer("rest of the body")

        def _expect(self, what: str, seconds: float, otherwise: Callable[[], None]) -> None:
            if what not in self._waits:
                self._waits[what] = self.loop.call_later(seconds, otherwise)

        def _no_longer(self, what: str) -> None:
            if wait := self._waits.pop(what, None):
                wait.cancel()

    return ProtocolWithTimeouts
