import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from onecycle.core.errors import InputError, StorageError
from onecycle.data.readers.download import RemoteFile, download

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """A local file server with configurable faults."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []  # the Range header of each request
        self.ignores_ranges = False
        self.stops_at: int | None = None
        self.pauses_at: int | None = None
        self.content = CONTENT
        self.wrong_range = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requested = self.headers["Range"]
                server.ranges.append(requested)
                has_range = requested and not server.ignores_ranges
                start = int(requested.removeprefix("bytes=").removesuffix("-")) if has_range else 0
                if start >= len(server.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(server.content) - start))
                if start:
                    first = start + server.wrong_range
                    self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
                self.end_headers()
                if server.pauses_at:
                    self.wfile.write(server.content[start : server.pauses_at])
                    while server.pauses_at:
                        time.sleep(0.01)
                    return
                self.wfile.write(server.content[start : server.stops_at])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.tar.gz"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def remote(server: Server) -> RemoteFile:
    return RemoteFile(url=server.url, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


def test_a_download_leaves_only_the_file(server: Server, remote: RemoteFile, tmp_path: Path) -> None:
    path = download(remote, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "set.tar.gz"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_download_is_continued(server: Server, remote: RemoteFile, tmp_path: Path) -> None:
    server.stops_at = 100_000
    with pytest.raises(InputError, match="stopped at 100,000 of 300,000 bytes; repeat the command to continue"):
        download(remote, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz.part"]
    server.stops_at = None
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def half_done(server: Server, remote: RemoteFile, folder: Path) -> SpawnProcess:
    """A process that downloads `remote` into `folder`, and waits for the second half of the file."""
    server.pauses_at = 100_000
    process = multiprocessing.get_context("spawn").Process(target=download, args=(remote, folder))
    process.start()
    part = folder / "set.tar.gz.part"
    while not part.exists() or part.stat().st_size < 65_536:
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_killed_download_is_continued(server: Server, remote: RemoteFile, tmp_path: Path) -> None:
    process = half_done(server, remote, tmp_path)
    process.kill()
    process.join()
    server.pauses_at = None
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".set.tar.gz.lock", "set.tar.gz.part"]
    have = (tmp_path / "set.tar.gz.part").stat().st_size
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={have}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_of_two_downloads_at_once_the_second_waits_for_the_first(
    server: Server, remote: RemoteFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = half_done(server, remote, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(download, remote, tmp_path)
        while "another process is downloading set.tar.gz; waiting for it" not in capsys.readouterr().err:
            time.sleep(0.01)
        assert server.ranges == [None]
        process.kill()
        server.pauses_at = None
        assert second.result().read_bytes() == CONTENT
    process.join()


def test_the_download_starts_again_if_the_server_ignores_ranges(
    server: Server, remote: RemoteFile, tmp_path: Path
) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:50_000])
    server.ignores_ranges = True
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=50000-"]


def test_a_continuation_at_the_wrong_position_is_refused(server: Server, remote: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:50_000])
    server.wrong_range = True
    with pytest.raises(InputError, match="continued the file at the wrong position.*50,000 bytes are kept"):
        download(remote, tmp_path)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == CONTENT[:50_000]


def test_a_partial_file_that_is_too_long_is_downloaded_again(
    server: Server, remote: RemoteFile, tmp_path: Path
) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT + b"more")
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_complete_partial_file_is_only_checked(server: Server, remote: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT)
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_partial_file_longer_than_the_file_of_the_server_is_deleted(
    server: Server, remote: RemoteFile, tmp_path: Path
) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:50_000])
    server.content = CONTENT[:40_000]
    with pytest.raises(InputError, match="could not be downloaded"):
        download(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: c + b"?"], ids=["other bytes", "longer"]
)
def test_a_file_that_is_not_the_expected_one_is_deleted(
    server: Server, remote: RemoteFile, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    server.content = change(CONTENT)
    with pytest.raises(InputError, match=r"not the expected file \(size or sha256 differ\), so it was deleted"):
        download(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_is_reported(tmp_path: Path) -> None:
    unreachable = RemoteFile(url="http://127.0.0.1:9/set.tar.gz", size=1, sha256="")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/set\.tar\.gz could not be downloaded into .* \(.*refused"):
        download(unreachable, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_named(remote: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be downloaded into .*file/folder"):
        download(remote, tmp_path / "file" / "folder")
