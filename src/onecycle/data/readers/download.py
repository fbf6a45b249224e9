"""Download a file with a known size and checksum."""

import hashlib
import http.client
import os
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from onecycle.core.errors import InputError, StorageError
from onecycle.core.files import flush, waiting_for_lock

_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 20
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on the web with its `size` in bytes and `sha256` in hex."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def matches(path: Path, remote: RemoteFile) -> bool:
    """Whether the file at `path` has the size and sha256 of `remote`."""
    if path.stat().st_size != remote.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256


def download(remote: RemoteFile, folder: Path) -> Path:
    """Download `remote` into `folder`, with a progress bar.

    The file is called NAME.part until it is complete and verified. A second call continues an interrupted download. If
    another process downloads the file, wait for it.

    Raises:
        InputError: when there is no connection, when the download is interrupted, or when the file is not the expected
            one.
        StorageError: when the folder cannot be written.
    """
    whole, part = folder / remote.name, folder / f"{remote.name}.part"

    def say_waiting() -> None:
        print(f"onecycle: another process is downloading {remote.name}; waiting for it", file=sys.stderr)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_for_lock(folder / f".{remote.name}.lock", say_waiting):
            if not whole.exists():
                _complete(remote, part)
                part.replace(whole)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
        kept = (
            f"; {part.stat().st_size:,} bytes are kept; repeat the command to continue" if os.path.isfile(part) else ""
        )
        kind = InputError if isinstance(error, _NETWORK_ERRORS) else StorageError
        raise kind(f"{remote.url} could not be downloaded into {folder} ({reason}){kept}") from error
    return whole


def _complete(remote: RemoteFile, part: Path) -> None:
    """Download what is missing of the file `part`, and verify it.

    Raises:
        InputError: when the download stops early, or the file is not the expected one.
        OSError, HTTPException: when the download fails, or the file cannot be written.
    """
    if part.exists() and part.stat().st_size > remote.size:
        part.unlink()
    if not part.exists() or part.stat().st_size < remote.size:
        _fetch(remote, part)
    if part.stat().st_size < remote.size:
        raise InputError(
            f"the download of {remote.url} stopped at {part.stat().st_size:,} of {remote.size:,} bytes; "
            "repeat the command to continue"
        )
    if not matches(part, remote):
        part.unlink()
        raise InputError(
            f"the download of {remote.url} is not the expected file (size or sha256 differ), so it was deleted; "
            "try again later"
        )
    flush(part)


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server's file is shorter than `part`, so the download cannot continue
            part.unlink(missing_ok=True)
        raise
    return response


def _fetch(remote: RemoteFile, part: Path) -> None:
    """Append the rest of the file to `part`, or start from the beginning if the server cannot send only the rest."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
    with _open(request, part) as response:
        # A server may ignore the range and send the whole file.
        continues = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and response.status == 206 and not continues:
            raise http.client.HTTPException("the server continued the file at the wrong position")
        have = have if continues else 0
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        with bar, part.open("ab" if have else "wb") as file:
            task = bar.add_task(remote.name, total=remote.size, completed=have)
            while have <= remote.size and (chunk := response.read(_CHUNK)):
                file.write(chunk)
                have += len(chunk)
                bar.update(task, completed=have)
