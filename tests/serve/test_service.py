"""What programs are answered, and what they are refused."""

import base64
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
import pytest
import requests
from photographs import SHOWN
from PIL import Image

import onecycle
from onecycle.cli import main

from .conftest import WITH_LIMITS, Service, started


def post(service: Service, *contents: bytes, **query: object) -> requests.Response:
    files = [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]
    return requests.post(service.url + "predict", params=query, files=files, timeout=60)


def test_one_or_many_pictures_are_named_like_by_predict(service: Service, pictures: list[Path]) -> None:
    response = post(service, *(path.read_bytes() for path in pictures))
    assert response.status_code == 200
    answers = response.json()["pictures"]
    assert [answer["file"] for answer in answers] == [f"{number}.png" for number in range(8)]
    assert [answer["predictions"][0]["label"] for answer in answers] == SHOWN
    assert all(len(answer["predictions"]) == 5 and answer["explanation"] is None for answer in answers)
    expected = onecycle.load().predict(pictures)
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["predictions"][0]["probability"] == pytest.approx(prediction.probability, abs=0.02)
    (alone,) = post(service, pictures[4].read_bytes(), top=1).json()["pictures"]
    assert [one["label"] for one in alone["predictions"]] == ["cat"]


def test_an_explanation_has_what_the_network_saw_and_where_it_looked(service: Service, pictures: list[Path]) -> None:
    (answer,) = post(service, pictures[2].read_bytes(), explain=True).json()["pictures"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["explanation"]["seen"]))))
    assert (seen == onecycle.load().to_input(pictures[2])).all()
    heat = np.array(answer["explanation"]["heat"])
    assert heat.shape == (3, 3) and heat.min() >= 0 and heat.max() == 1


def test_a_file_that_is_no_picture_keeps_nothing_from_the_others(service: Service, pictures: list[Path]) -> None:
    response = post(service, b"no picture", pictures[0].read_bytes(), pictures[1].read_bytes()[:-50])
    assert response.status_code == 200
    text, picture, cut = response.json()["pictures"]
    assert text["error"] == "this file: not a picture (10 bytes); replace or remove it" and not text["predictions"]
    assert picture["predictions"][0]["label"] == "horse" and picture["error"] is None
    assert "cannot be read" in cut["error"]
    assert post(service, b"no picture").status_code == 422


def test_it_is_up_and_says_what_it_knows(service: Service) -> None:
    health = requests.get(service.url + "health", timeout=10).json()
    assert health["status"] == "ok" and health["network"] == "CIFAR-10" and len(health["classes"]) == 10


@pytest.mark.parametrize("path", ["", "docs", "page.js", "openapi.json", "health", "nowhere", "swagger/swagger-ui.css"])
def test_every_answer_forbids_what_a_page_does_not_need(service: Service, path: str) -> None:
    response = requests.get(service.url + path, timeout=10)
    assert response.status_code == (404 if path == "nowhere" else 200)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert ("unsafe-inline" in policy["style-src"]) == (path == "docs")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert "server" not in response.headers


def test_the_pages_have_no_script_or_style_within(service: Service) -> None:
    for path in ("", "docs"):
        page = requests.get(service.url + path, timeout=10).text
        assert not re.search(r"<style|style=|<script>|<script [^>]*>[^<]|\son\w+=|https?://", page)


def test_a_page_of_another_name_is_not_answered(service: Service) -> None:
    response = requests.get(service.url + "health", headers={"Host": "elsewhere.example"}, timeout=10)
    assert response.status_code == 400


def test_only_this_machine_is_listened_to(service: Service) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", service.port))


# What it refuses


@pytest.mark.parametrize(
    ("status", "options", "detail"),
    [
        (415, {"data": b"\x89PNG", "headers": {"Content-Type": "image/png"}}, "send pictures as files of a form"),
        (415, {}, "send pictures as files of a form"),
        (415, {"headers": {"Content-Type": "multipart/form-data"}}, "the form has no boundary"),
        (422, {"data": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, ""),
        (422, {"files": [("others", ("a.png", b"x"))]}, "there is no file in the form; send one or more as `files`"),
        (422, {"files": [("files", (None, "text"))]}, "`files` must be files"),
        (422, {"files": [("files", (f"{n}.png", b"x")) for n in range(33)]}, "Too many files"),
        (422, {"params": {"top": 0}, "files": [("files", ("a.png", b"x"))]}, ""),
    ],
    ids=["raw", "empty", "no boundary", "no form", "other field", "no file", "33 files", "top 0"],
)
def test_a_request_that_is_not_as_it_must_be_is_told(
    service: Service, status: int, options: dict[str, object], detail: str
) -> None:
    response = requests.post(service.url + "predict", timeout=10, **options)  # type: ignore[arg-type]
    assert response.status_code == status
    assert detail in str(response.json())


def test_files_and_requests_that_are_too_large_are_refused(service: Service, pictures: list[Path]) -> None:
    before = service.memory_mib()
    response = post(service, pictures[0].read_bytes() + bytes(17 * 2**20), pictures[0].read_bytes())
    large, small = response.json()["pictures"]
    assert large["error"] == "this file is larger than 16 MiB; make it smaller" and small["predictions"]
    huge = post(service, bytes(80 * 2**20))
    assert (huge.status_code, huge.json()["detail"]) == (413, "the request is too large; 64 MiB is the most")
    assert post(service, pictures[0].read_bytes()).status_code == 200
    assert service.memory_mib() < before + 300


@pytest.mark.parametrize(
    ("side", "words"), [(8_000, "8000×8000 pixels are more than 30,000,000"), (50_000, "decompression bomb")]
)
def test_a_decompression_bomb_is_refused_by_its_head(service: Service, side: int, words: str) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**24))) + chunk(b"IEND", b"")
    before = service.memory_mib()
    (answer,) = post(service, bomb).json()["pictures"]
    assert words in answer["error"]
    assert service.memory_mib() < before + 100


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX"])
def test_only_usual_formats_are_decoded(service: Service, kind: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, kind)
    assert "not a picture" in post(service, content.getvalue()).json()["pictures"][0]["error"]


def test_nothing_that_is_sent_is_written_to_a_disk(service: Service) -> None:
    """A large upload would be spooled into a temporary file, if it were left to the form's reader."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(service.files())
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG", compress_level=0)
    for _ in range(3):
        assert post(service, content.getvalue()).status_code == 200
    done.set()
    watching.join()
    assert [name for name in seen if not name.startswith("/dev/")] == []


# Clients that wait, or do not


@pytest.fixture(scope="module")
def strict() -> object:
    """A service with limits that a test can reach."""
    limits = {"requests": 6, "upload_seconds": 4.0, "header_seconds": 1.0, "connections": 40, "waiting_pictures": 4}
    with started("-c", WITH_LIMITS, repr(limits)) as service:
        yield service


def connected(service: Service, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    client.sendall(sent)
    return client


def form(content: bytes) -> bytes:
    before = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    return before + content + b"\r\n--b--\r\n"


def status_of(client: socket.socket) -> int:
    """Of the next answer, which is read to its end."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"


@pytest.mark.parametrize("bit", [b"", b"GET / HT"], ids=["nothing", "half a line"])
def test_a_client_that_does_not_finish_its_head_is_left(strict: Service, bit: bytes) -> None:
    began = time.monotonic()
    with connected(strict, bit) as client:
        assert client.recv(100) == b""
    assert 0.5 < time.monotonic() - began < 5


def test_a_client_that_sends_its_head_byte_by_byte_is_left(strict: Service) -> None:
    with connected(strict, b"GET / HTTP/1.1\r\n") as client:
        began = time.monotonic()
        with pytest.raises(OSError):
            for byte in b"X-Slow: " + b"a" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.1)
    assert time.monotonic() - began < 5


def test_a_client_that_does_not_finish_its_upload_is_told_and_left(strict: Service) -> None:
    with connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n") as client, client.makefile("rb") as answer:
        whole = answer.read()  # to the end: it is closed
    assert whole.startswith(b"HTTP/1.1 408 ") and b"longer than 4 seconds" in whole


def test_slow_clients_do_not_keep_others_from_it_and_too_many_are_told(strict: Service, pictures: list[Path]) -> None:
    assert post(strict, pictures[0].read_bytes()).status_code == 200  # the first takes longer
    slow = [connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n") for _ in range(5)]
    time.sleep(0.3)
    assert post(strict, pictures[0].read_bytes()).status_code == 200
    slow.append(connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n"))
    time.sleep(0.3)
    busy = post(strict, pictures[0].read_bytes())
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert requests.get(strict.url + "health", timeout=10).status_code == 200
    for client in slow:
        client.close()
    time.sleep(1)
    assert post(strict, pictures[0].read_bytes()).status_code == 200
    assert requests.get(strict.url + "health", timeout=10).json()["requests"] == 0


def test_a_full_queue_is_told(strict: Service, pictures: list[Path]) -> None:
    response = post(strict, *[pictures[0].read_bytes()] * 30)
    assert response.status_code == 503
    assert post(strict, pictures[0].read_bytes()).status_code == 200


def test_a_flood_of_connections_is_cut_off_and_leaves_it_answering(strict: Service) -> None:
    flood = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(60)]
    time.sleep(0.3)
    cut = 0
    for client in flood:
        client.setblocking(False)
        with suppress(BlockingIOError):  # it is still waited for
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            cut += 1
    assert cut == 20  # 40 is the most
    time.sleep(2)  # the heads of the others do not come
    assert requests.get(strict.url + "health", timeout=10).status_code == 200
    for client in flood:
        client.close()


def test_a_client_that_was_refused_too_early_may_go_on(strict: Service, pictures: list[Path]) -> None:
    """It sends its body late, as usual clients do, and then something else, and is not cut off."""
    body = form(pictures[0].read_bytes())
    refused = HEAD.replace(b"multipart/form-data", b"text/plain") + b"Content-Length: %d\r\n\r\n" % len(body)
    with connected(strict, refused) as client:
        assert status_of(client) == 415
        time.sleep(0.2)
        client.sendall(body)
        for _ in range(4):
            time.sleep(0.5)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert status_of(client) == 200


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "latin-1"])
def test_a_client_does_not_choose_how_names_are_decoded(service: Service, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"a" * 500_000 + b"\r\n--b--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = requests.post(service.url + "predict", data=body, headers=kind, timeout=10)
    assert response.status_code == 415


def test_a_name_that_is_no_text_is_answered(service: Service) -> None:
    body = form(b"no picture").replace(b'filename="a"', b'filename="\xed\xa0\x80"')
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert requests.post(service.url + "predict", data=body, headers=kind, timeout=10).status_code == 422


def test_a_client_that_asks_first_is_refused_before_it_sends(service: Service) -> None:
    with connected(service, HEAD + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n") as client:
        assert client.recv(4000).startswith(b"HTTP/1.1 413 ")


def test_it_stops_in_silence_while_something_is_sent() -> None:
    with started("-m", "onecycle", "serve", "--port", "0") as service:
        client = connected(service, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n")
        time.sleep(0.3)
    client.close()


def test_a_client_that_is_answered_before_it_has_sent_all_is_left(strict: Service) -> None:
    with connected(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n") as client:
        assert status_of(client) == 200
        client.sendall(b"a")
        began = time.monotonic()
        assert client.recv(4000) == b""
        assert time.monotonic() - began < 4


def test_a_client_that_does_not_take_its_answers_is_left() -> None:
    asked, path = 20, "swagger/swagger-ui-bundle.js"
    with started("-c", WITH_LIMITS, repr({"write_seconds": 1.0})) as service:
        size = len(requests.get(f"{service.url}{path}", timeout=10).content)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        with client:
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * asked)
            time.sleep(3)
            taken = 0
            with suppress(ConnectionResetError):
                while content := client.recv(2**20):
                    taken += len(content)
        assert taken < asked * size
        assert requests.get(service.url + "health", timeout=10).status_code == 200


def test_clients_that_go_away_leave_nothing_behind(strict: Service, pictures: list[Path]) -> None:
    body = form(pictures[0].read_bytes())
    for _ in range(20):
        connected(strict, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body).close()
    time.sleep(1)
    assert requests.get(strict.url + "health", timeout=10).json()["requests"] == 0


# The command


def test_ctrl_c_stops_it_at_once() -> None:
    command = [sys.executable, "-m", "onecycle", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "Stopped\n", "")


def test_a_port_that_is_taken_is_told_in_one_line(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", str(service.port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen at 127.0.0.1, port {service.port}: Address already in use; give another" in line
    for options in (["--port", "99999"], ["--host", "no.such.host.invalid"], ["--host", "a..b"]):
        assert main(["serve", *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_description_names_every_answer(service: Service) -> None:
    description = json.loads(requests.get(service.url + "openapi.json", timeout=10).text)
    assert set(description["paths"]) == {"/predict", "/health"}
    assert {"200", "408", "413", "415", "422", "503"} <= description["paths"]["/predict"]["post"]["responses"].keys()
