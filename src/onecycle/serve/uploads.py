"""What a client sends, read into memory within limits. Nothing of it is ever written to a disk."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from onecycle.serve.limits import Limits

_LINGER_SECONDS = 2  # to hear a refused client out: it listens only when it has spoken
_NAME_LENGTH = 255
_PARSED_AT_ONCE = 2**16  # bytes


class Upload(NamedTuple):
    """A file that was sent: the name that the client gives it, and what is in it."""

    name: str
    content: bytes


class Room:
    """How many requests are served now, and how much of what they sent is in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.bytes = 0
        self.pictures = 0

    @contextmanager
    def of_a_request(self) -> Iterator["RequestRoom"]:
        """Inside, one more request is served.

        Raises:
            HTTPException: when there are too many.
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
            self.pictures -= taken.pictures


class RequestRoom:
    """What one request takes of the room that all share, until it ends."""

    def __init__(self, room: Room, limits: Limits) -> None:
        self._room = room
        self._limits = limits
        self.bytes = 0
        self.pictures = 0

    def take(self, *, bytes: int = 0, pictures: int = 0) -> None:
        """Take room for so many bytes more, and for so many pictures, to be decoded and to wait for the network.

        Raises:
            HTTPException: when there is none.
        """
        room, limits = self._room, self._limits
        if room.bytes + bytes > limits.waiting_bytes or room.pictures + pictures > limits.waiting_pictures:
            raise busy()
        room.bytes += bytes
        room.pictures += pictures
        self.bytes += bytes
        self.pictures += pictures


def busy() -> HTTPException:
    return HTTPException(503, "too much to do; try again in a moment", headers={"Retry-After": "1"})


async def read_uploads(request: Request, room: RequestRoom, limits: Limits) -> list[Upload]:
    """The files in the form that `request` brings.

    Raises:
        HTTPException: when it is no form with files, too large, too slow, or there is no room for it.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    # Names in another charset are the client's choice of a decoder, and there are slow ones.
    if kind.lower() != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise HTTPException(415, "send pictures as files of a form (multipart/form-data, in UTF-8)")
    if not options.get(b"boundary"):
        raise HTTPException(415, "the form has no boundary")
    try:
        async with asyncio.timeout(limits.upload_seconds):
            body = await _read(request, room, limits)
    except TimeoutError:
        raise _closing(408, f"the request took longer than {limits.upload_seconds:g} seconds to arrive") from None
    except ClientDisconnect:  # nobody hears this
        raise _closing(400, "the request did not arrive") from None
    files = await _files(request, body, limits)
    if not files:
        raise HTTPException(422, "there is no file in the form; send one or more as `files`")
    if any(not isinstance(file, UploadFile) for file in files):
        raise HTTPException(422, "`files` must be files")
    return [Upload(_printable(file.filename or ""), await file.read()) for file in files]


async def _read(request: Request, room: RequestRoom, limits: Limits) -> bytes:
    body, stream = bytearray(), request.stream()
    if int(request.headers.get("content-length", 0)) > limits.request_bytes:
        if "expect" not in request.headers:  # else it has sent nothing, and to listen would invite it
            await _hear_out(stream)
        raise _too_large(limits)
    async for chunk in stream:
        room.take(bytes=len(chunk))
        body += chunk
        if len(body) > limits.request_bytes:
            await _hear_out(stream)
            raise _too_large(limits)
    return bytes(body)


async def _hear_out(stream: AsyncIterator[bytes]) -> None:
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
            await asyncio.sleep(0)  # others have their turn

    parser = MultiPartParser(request.headers, parts(), max_files=limits.files, max_fields=limits.files)  # type: ignore[arg-type]
    parser.spool_max_size = limits.request_bytes + 1  # which is in memory: a larger file would be written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        reason = getattr(error, "message", None) or "it is damaged"
        raise HTTPException(422, f"the form cannot be read: {reason}") from error
    return form.getlist("files")  # type: ignore[return-value]


def _printable(name: str) -> str:
    return name[:_NAME_LENGTH].encode(errors="replace").decode()


def _too_large(limits: Limits) -> HTTPException:
    return _closing(413, f"the request is too large; {limits.request_bytes // 2**20} MiB is the most")


def _closing(status: int, detail: str) -> HTTPException:
    return HTTPException(status, detail, headers={"Connection": "close"})
