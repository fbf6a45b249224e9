"""Refuse requests whose host is not a name of this service, and requests from pages of other sites."""

import ipaddress
import re
import socket
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from onecycle.core.errors import InputError

_PORT = re.compile(r":\d*$")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def host_name(text: str) -> str:
    """Convert `text`, a host name from an option, to the form in Host headers: lower case, non-ASCII as Punycode.

    Raises:
        InputError: when `text` is not a host name, or has a scheme or a port.
    """
    try:
        name = text.encode("idna").decode().removesuffix(".").lower()
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise InputError(f"--allowed-host is {text!r}; give a host name such as photos.example.org, without port")
    return name


class AccessControl:
    """Refuses requests with the name of another host (status 400) and requests from pages of other sites (403).

    Checking the host name prevents DNS rebinding. In this attack, another site points its own host name to the address
    of this service. Without the check, the page of that site could then read the responses. An IP address as the host
    is always accepted, because a site cannot point an IP address to another machine. A request without a Host header
    is accepted: it does not come from a browser, because browsers always send this header.

    `own` are the names of this machine, and `allowed` are further names that the user of the service chose.
    """

    def __init__(self, app: ASGIApp, *, own: Sequence[str], allowed: Sequence[str]) -> None:
        self.app = app
        self._allowed = frozenset(allowed)
        self._names = self._allowed | {name.lower() for name in ("localhost", socket.gethostname(), *own)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope["method"], Headers(scope=scope))):
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host")
        if host is not None and not self._is_own_name(name := _without_port(host)):
            words = (
                f"the host {name!r} is not a name of this service; if it should be, start the service with "
                "--allowed-host NAME"
            )
            return JSONResponse({"detail": words}, 400)
        if self._is_from_another_site(method, headers, host):
            words = (
                f"this request comes from a page of another site ({headers.get('origin', 'unknown')}); use the page of "
                "this service; if that site is the public name of this service, start it with --allowed-host NAME"
            )
            return JSONResponse({"detail": words}, 403)
        return None

    def _is_own_name(self, name: str) -> bool:
        return name in self._names or _is_address(name)

    def _is_from_another_site(self, method: str, headers: Headers, host: str | None) -> bool:
        """Whether a page of another site has sent a request.

        Programs other than browsers send neither `Sec-Fetch-Site` nor `Origin`.

        Source: F. Valsorda 2025, "Cross-Site Request Forgery". Go's net/http uses the same algorithm.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        # Sec-Fetch-Site is correct behind any proxy, but browsers send it only over HTTPS or locally.
        if site in ("same-origin", "none"):
            return False
        if method == "GET" and headers.get("sec-fetch-mode") == "navigate":  # other sites may link to this service
            return False
        return site == "cross-site" or (origin is not None and not self._is_own_origin(origin, host))

    def _is_own_origin(self, origin: str, host: str | None) -> bool:
        # Schemes are not compared: a proxy may receive HTTPS and forward HTTP. A proxy may also replace the Host header
        # by its own address. In this case, the origin must be a name that the user has allowed.
        place = origin.partition("://")[2].lower()
        return bool(place) and (place == (host or "").lower() or _without_port(place) in self._allowed)


def _without_port(host: str) -> str:
    return _PORT.sub("", host).removesuffix(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
