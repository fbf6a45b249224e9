"""The process that answers: where it listens, whom it hears out, and when it gives up on a client."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onecycle.core.errors import InputError
from onecycle.predict.predictor import Predictor
from onecycle.serve.app import make_app
from onecycle.serve.limits import LIMITS, Limits

_STOP_SECONDS = 5  # for what is being answered, when the service is told to stop
_KEEP_ALIVE_SECONDS = 5
_LINGER_SECONDS = 1  # to hear out a client that was answered before it had sent all


def run(predictor: Predictor, name: str, *, host: str, port: int, limits: Limits = LIMITS) -> None:
    """Answer at `host` and `port` until the process is told to stop.

    Raises:
        InputError: when the address cannot be had.
    """
    listening = _listen(host, port)
    # On this machine alone: a page of another site that has its own name lead here is not answered.
    hosts = ("localhost", "127.0.0.1", "[::1]", host) if _is_of_this_machine(host) else ("*",)
    app = make_app(predictor, name, limits=limits, hosts=hosts)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it tells of every form that is none
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    shown = f"[{host}]" if ":" in host else host
    server = _Server(
        f"{name}: http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C stops)",
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
        server.run(sockets=[listening])


def _is_news(record: logging.LogRecord) -> bool:
    """Whether uvicorn tells more than that it ended what was being answered, because it was told to stop."""
    is_end = bool(record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
    return not is_end and not str(record.msg).startswith("Cancel %s running task(s)")


class _Server(uvicorn.Server):
    """uvicorn's server, which says `welcome` when it answers."""

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
            # Where the protocol is not named, asyncio does not send at once, and every answer waits for the client.
            listening = undone.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            undone.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "that is no address"
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; give another --host or --port") from error
    return listening


def _is_of_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for a client as long as it likes, with an end to that."""

    class Impatient(H11Protocol):
        _waits: dict[str, asyncio.TimerHandle]

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waits = {}
            transport.set_write_buffer_limits(high=0)  # so that writing pauses when anything is not taken
            if len(self.connections) > limits.connections:
                transport.abort()
            self._watch()

        def handle_events(self) -> None:
            super().handle_events()
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect("taking", limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._no_longer("taking")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for wait in list(self._waits):
                self._no_longer(wait)

        def _watch(self) -> None:
            # Neither a head nor a body that arrives bit by bit moves its deadline.
            if self.conn.their_state is h11.IDLE:
                self._expect("head", limits.header_seconds, self.transport.close)
            else:
                self._no_longer("head")
            if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:  # nobody reads it
                self._expect("rest of the body", _LINGER_SECONDS, self.transport.close)
            else:
                self._no_longer("rest of the body")

        def _expect(self, what: str, seconds: float, otherwise: Callable[[], None]) -> None:
            if what not in self._waits:
                self._waits[what] = self.loop.call_later(seconds, otherwise)

        def _no_longer(self, what: str) -> None:
            if wait := self._waits.pop(what, None):
                wait.cancel()

    return Impatient
