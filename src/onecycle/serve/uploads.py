"""Read uploaded files into memory, within limits. Nothing is written to disk."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from onecycle.serve.limits import Limits

# Read the rest of a request that is too large for at most this long before the refusal. Most clients send the whole
# request before they read the response.
_LINGER_SECONDS = 2
_NAME_LENGTH = 255
_PARSED_AT_ONCE = 2**16  # bytes that are parsed before other requests run
# This pattern matches one parameter in a Content-Disposition header.
_PARAMETER = re.compile(r';\s*([^=;\s]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_CHARSETS = ("utf-8", "iso-8859-1")  # the charsets of RFC 5987; some other charsets have slow decoders


class Upload(NamedTuple):
    """An uploaded file: its name as sent, and its content."""

    name: str
    content: bytes


class Room:
    """The totals of all active requests: their number, their memory and their places in the queue."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.bytes = 0
        self.images = 0

    @contextmanager
    def of_a_request(self) -> Iterator["RequestRoom"]:
        """Count one more active request while the caller's `with` block runs.

        Raises:
            HTTPException: when there are too many active requests.
        """
        if self.requests >= self._limits.requests:
            raise busy()
        self.requests += 1
        taken = RequestRoom(self, self._limits)
        try:
            yield taken
        finally:
            self.requests -= 1
            self.bytes -= taken.bytes
            self.images -= taken.images


class RequestRoom:
    """The memory and the places in the queue that one request uses until it ends."""

    def __init__(self, room: Room, limits: Limits) -> None:
        self._room = room
        self._limits = limits
        self.bytes = 0
        self.images = 0

    def take(self, *, bytes: int = 0, images: int = 0) -> None:
        """Reserve memory for more bytes, and places in the queue for images.

        Raises:
            HTTPException: when the memory or the queue is full.
        """
        room, limits = self._room, self._limits
        if room.bytes + bytes > limits.waiting_bytes or room.images + images > limits.waiting_images:
            raise busy()
        room.bytes += bytes
        room.images += images
        self.bytes += bytes
        self.images += images


def busy() -> HTTPException:
    return HTTPException(503, "the service is busy; try again in a moment", headers={"Retry-After": "1"})


async def read_uploads(request: Request, room: RequestRoom, limits: Limits) -> list[Upload]:
    """The files in the form of `request`.

    Raises:
        HTTPException: when the request is not a form with files, when it is too large or too slow, or when the service
            is busy.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    # Another charset would let the client choose a slow decoder for file names.
    if kind.lower() != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise HTTPException(415, "send images as files of a form (multipart/form-data, in UTF-8)")
    if not options.get(b"boundary"):
        raise HTTPException(415, "the form has no boundary")
    try:
        async with asyncio.timeout(limits.upload_seconds):
            body = await _read(request, room, limits)
    except TimeoutError:
        raise _closing(408, f"the request took longer than {limits.upload_seconds:g} seconds to arrive") from None
    except ClientDisconnect:
        raise _closing(400, "the request did not arrive") from None
    files = await _files(request, body, limits)
    if not files:
        raise HTTPException(422, "the form has no file; send one or more as `files`")
    if any(not isinstance(file, UploadFile) for file in files):
        raise HTTPException(422, "every `files` field must be a file")
    return [Upload(_printable(file.filename or ""), await file.read()) for file in files]


async def _read(request: Request, room: RequestRoom, limits: Limits) -> bytes:
    body, stream = bytearray(), request.stream()
    if int(request.headers.get("content-length", 0)) > limits.request_bytes:
        # A client that sent "Expect: 100-continue" sends the body only after an answer: here there is no body to read.
        if "expect" not in request.headers:
            await _drain(stream)
        raise _too_large(limits)
    async for chunk in stream:
        room.take(bytes=len(chunk))
        body += chunk
        if len(body) > limits.request_bytes:
            await _drain(stream)
            raise _too_large(limits)
    return bytes(body)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            async for _ in stream:
                pass
    except TimeoutError:
        pass


async def _files(request: Request, body: bytes, limits: Limits) -> list[UploadFile]:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _PARSED_AT_ONCE):
            yield body[start : start + _PARSED_AT_ONCE]
            await asyncio.sleep(0)  # let other requests run

    parser = _FormParser(request.headers, parts(), max_files=limits.files, max_fields=limits.files)  # type: ignore[arg-type]
    parser.spool_max_size = limits.request_bytes + 1  # keeps all files in memory: only larger files would go to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        reason = getattr(error, "message", None) or "it is damaged"
        raise HTTPException(422, f"the form cannot be read: {reason}") from error
    return form.getlist("files")  # type: ignore[return-value]


class _FormParser(MultiPartParser):
    """Starlette's form parser, extended to accept file names in the parameter `filename*`.

    RFC 7578 forbids this parameter in uploads, but some clients send it, alone or with `filename`.
    """

    def on_headers_finished(self) -> None:
        part = self._current_part
        name = _extended_name((part.content_disposition or b"").decode("latin-1"))
        if name is not None:
            part.content_disposition = (part.content_disposition or b"") + b"; filename=extended"
        super().on_headers_finished()
        if name is not None and part.file:
            part.file.filename = name


def _extended_name(disposition: str) -> str | None:
    """The file name in the parameter `filename*` of a Content-Disposition header. Source: RFC 5987, section 3.2."""
    for match in _PARAMETER.finditer(disposition):
        if match[1].lower() == "filename*":
            charset, _, rest = match[2].strip().strip('"').partition("'")
            if charset.lower() not in _CHARSETS:
                raise MultiPartException("write `filename*` in UTF-8: UTF-8''NAME")
            return unquote_to_bytes(rest.partition("'")[2]).decode(charset)
    return None


def _printable(name: str) -> str:
    return name[:_NAME_LENGTH].encode(errors="replace").decode()


def _too_large(limits: Limits) -> HTTPException:
    return _closing(413, f"the request is too large; the limit is {limits.request_bytes // 2**20} MiB")


def _closing(status: int, detail: str) -> HTTPException:
    return HTTPException(status, detail, headers={"Connection": "close"})
