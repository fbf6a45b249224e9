"""The HTTP API: its responses, and requests that it refuses."""

import base64
import io
import json
import os
import re
import shutil
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
from onecycle.predict.predictor import SHIPPED
from onecycle.storage.checkpoint import load_tensors, save_tensors

from .conftest import WITH_LIMITS, Service, started


def post(service: Service, *contents: bytes, **query: object) -> requests.Response:
    files = [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]
    return requests.post(service.url + "predict", params=query, files=files, timeout=60)


def test_one_or_many_images_get_the_predictions_of_the_library(service: Service, image_files: list[Path]) -> None:
    response = post(service, *(path.read_bytes() for path in image_files))
    assert response.status_code == 200
    answers = response.json()["images"]
    assert [answer["file"] for answer in answers] == [f"{number}.png" for number in range(8)]
    assert [answer["predictions"][0]["class_name"] for answer in answers] == SHOWN
    assert all(len(answer["predictions"]) == 5 and answer["explanation"] is None for answer in answers)
    expected = onecycle.load().predict(image_files)
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["predictions"][0]["probability"] == pytest.approx(prediction.probability, abs=0.02)
        assert answer["energy_score"] == pytest.approx(prediction.energy_score, abs=0.05)
        assert answer["in_distribution"] is prediction.in_distribution
    (single,) = post(service, image_files[4].read_bytes(), top=1).json()["images"]
    assert [one["class_name"] for one in single["predictions"]] == ["cat"]


def test_noise_is_out_of_distribution(service: Service) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noise, "PNG")
    noisy, unreadable = post(service, noise.getvalue(), b"plain text").json()["images"]
    assert noisy["in_distribution"] is False and noisy["predictions"]
    assert (unreadable["in_distribution"], unreadable["energy_score"]) == (None, None)


def test_an_explanation_has_the_input_pixels_and_the_heatmap(service: Service, image_files: list[Path]) -> None:
    (answer,) = post(service, image_files[2].read_bytes(), explain=True).json()["images"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["explanation"]["pixels"]))))
    assert (pixels == onecycle.load().to_input(image_files[2])).all()
    heatmap = np.array(answer["explanation"]["heatmap"])
    assert heatmap.shape == (3, 3) and heatmap.min() >= 0 and heatmap.max() == 1


def test_an_unreadable_file_does_not_affect_the_others(service: Service, image_files: list[Path]) -> None:
    response = post(service, b"plain text", image_files[0].read_bytes(), image_files[1].read_bytes()[:-50])
    assert response.status_code == 200
    text, image, truncated = response.json()["images"]
    assert text["error"] == "this file: not an image (10 bytes); replace or remove it" and not text["predictions"]
    assert image["predictions"][0]["class_name"] == "horse" and image["error"] is None
    assert "cannot be read" in truncated["error"]
    assert post(service, b"plain text").status_code == 422


def test_health_names_the_network_and_its_classes(service: Service) -> None:
    health = requests.get(service.url + "health", timeout=10).json()
    assert health["status"] == "ok" and health["network"] == "CIFAR-10" and len(health["classes"]) == 10


PATHS = ["", "docs", "page.js", "openapi.json", "health", "nowhere", "swagger/swagger-ui.css"]


@pytest.mark.parametrize("path", PATHS)
def test_every_response_has_security_headers(service: Service, path: str) -> None:
    response = requests.get(service.url + path, timeout=10)
    assert response.status_code == (404 if path == "nowhere" else 200)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert ("unsafe-inline" in policy["style-src"]) == (path == "docs")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert "server" not in response.headers


@pytest.mark.parametrize("path", [*PATHS, "predict"])
def test_head_gets_the_headers_of_get_without_the_body(service: Service, path: str) -> None:
    get, head = (requests.request(method, service.url + path, timeout=10) for method in ("GET", "HEAD"))
    assert (head.status_code, head.headers, head.content) == (get.status_code, get.headers, b"")
    assert int(head.headers["content-length"]) == len(get.content)


def test_the_pages_have_no_inline_script_or_style(service: Service) -> None:
    for path in ("", "docs"):
        page = requests.get(service.url + path, timeout=10).text
        assert not re.search(r"<style|style=|<script>|<script [^>]*>[^<]|\son\w+=|https?://", page)


def test_the_service_listens_on_this_machine_only(service: Service) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", service.port))


# Refused requests


@pytest.mark.parametrize(
    ("status", "options", "detail"),
    [
        (415, {"data": b"\x89PNG", "headers": {"Content-Type": "image/png"}}, "send images as files of a form"),
        (415, {}, "send images as files of a form"),
        (415, {"headers": {"Content-Type": "multipart/form-data"}}, "the form has no boundary"),
        (422, {"data": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, ""),
        (422, {"files": [("others", ("a.png", b"x"))]}, "the form has no file; send one or more as `files`"),
        (422, {"files": [("files", (None, "text"))]}, "every `files` field must be a file"),
        (422, {"files": [("files", (f"{n}.png", b"x")) for n in range(33)]}, "Too many files"),
        (422, {"params": {"top": 0}, "files": [("files", ("a.png", b"x"))]}, ""),
    ],
    ids=["raw", "empty", "no boundary", "no form", "other field", "no file", "33 files", "top 0"],
)
def test_a_malformed_request_is_refused_with_a_reason(
    service: Service, status: int, options: dict[str, object], detail: str
) -> None:
    response = requests.post(service.url + "predict", timeout=10, **options)  # type: ignore[arg-type]
    assert response.status_code == status
    assert detail in str(response.json())


def test_files_and_requests_that_are_too_large_are_refused(service: Service, image_files: list[Path]) -> None:
    before = service.memory_mib()
    response = post(service, image_files[0].read_bytes() + bytes(17 * 2**20), image_files[0].read_bytes())
    large, small = response.json()["images"]
    assert large["error"] == "this file is larger than 16 MiB; make it smaller" and small["predictions"]
    huge = post(service, bytes(80 * 2**20))
    assert (huge.status_code, huge.json()["detail"]) == (413, "the request is too large; the limit is 64 MiB")
    assert post(service, image_files[0].read_bytes()).status_code == 200
    assert service.memory_mib() < before + 300


@pytest.mark.parametrize(
    ("side", "words"), [(8_000, "8000×8000 pixels; the limit is 30,000,000"), (50_000, "decompression bomb")]
)
def test_a_decompression_bomb_is_refused_by_its_header(service: Service, side: int, words: str) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2**24))) + chunk(b"IEND", b"")
    before = service.memory_mib()
    (answer,) = post(service, bomb).json()["images"]
    assert words in answer["error"]
    assert service.memory_mib() < before + 100


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX"])
def test_only_common_formats_are_decoded(service: Service, kind: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, kind)
    assert "not an image" in post(service, content.getvalue()).json()["images"][0]["error"]


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ('filename="a b.png"', "a b.png"),
        ("filename*=UTF-8''x.png", "x.png"),
        ("filename*=utf-8'en'%e2%82%ac%20rates.png", "€ rates.png"),
        ("FileName* = iso-8859-1''%A3.png", "£.png"),
        ("filename=\"fallback.png\"; filename*=UTF-8''%C3%A4.png", "ä.png"),
        ("filename*=UTF-8''%C3%A4.png; filename=\"fallback.png\"", "ä.png"),
        ("filename=\"a; filename*=UTF-8''b.png\"", "a; filename*=UTF-8''b.png"),
        ("filename*=UTF-8''", ""),
    ],
)
def test_a_file_name_may_be_plain_or_extended(service: Service, parameter: str, name: str) -> None:
    body = form(b"plain text").replace(b'filename="a"', parameter.encode())
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    response = requests.post(service.url + "predict", data=body, headers=kind, timeout=10)
    (answer,) = response.json()["images"]
    assert (answer["file"], answer["predictions"]) == (name, [])


@pytest.mark.parametrize("value", ["x.png", "punycode''x.png", "UTF-8''%ff.png", "''x.png"])
def test_an_extended_file_name_that_is_not_utf_8_is_refused(service: Service, value: str) -> None:
    body = form(b"plain text").replace(b'filename="a"', f"filename*={value}".encode())
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    response = requests.post(service.url + "predict", data=body, headers=kind, timeout=10)
    assert response.status_code == 422
    assert "the form cannot be read" in response.json()["detail"]


def test_uploads_are_not_written_to_a_disk(service: Service) -> None:
    """The service keeps uploads in memory. By default, its form parser would write large uploads to temporary files."""
    opened: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            opened.update(service.files())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG", compress_level=0)
    for _ in range(3):
        assert post(service, content.getvalue()).status_code == 200
    done.set()
    watcher.join()
    assert [name for name in opened if not name.startswith("/dev/")] == []


# Slow and hostile clients


@pytest.fixture(scope="module")
def strict() -> object:
    """A service whose limits are so low that a test can reach them."""
    limits = {"requests": 6, "upload_seconds": 8.0, "header_seconds": 1.0, "connections": 40, "waiting_images": 4}
    full = "onecycle: the limit of 40 connections is reached; idle connections are closed"
    with started("-c", WITH_LIMITS, repr(limits), may_say=full) as service:
        yield service


def connected(service: Service, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    client.sendall(sent)
    return client


def wait_for_requests(service: Service, count: int) -> None:
    """Wait until `count` requests are in progress. A request to /health is not counted."""
    deadline = time.monotonic() + 30
    while (found := requests.get(service.url + "health", timeout=10).json()["requests"]) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def form(content: bytes) -> bytes:
    before = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    return before + content + b"\r\n--b--\r\n"


def status_of(client: socket.socket) -> int:
    """Read the next response to its end, and return its status."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"


@pytest.mark.parametrize("part", [b"", b"GET / HT"], ids=["nothing", "half a line"])
def test_a_client_that_does_not_finish_its_header_is_disconnected(strict: Service, part: bytes) -> None:
    started_at = time.monotonic()
    with connected(strict, part) as client:
        assert client.recv(100) == b""
    assert 0.5 < time.monotonic() - started_at < 5


def test_a_client_that_sends_its_header_byte_by_byte_is_disconnected(strict: Service) -> None:
    with connected(strict, b"GET / HTTP/1.1\r\n") as client:
        started_at = time.monotonic()
        with pytest.raises(OSError):
            for byte in b"X-Slow: " + b"a" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.1)
    assert time.monotonic() - started_at < 5


def test_a_client_that_does_not_finish_its_upload_gets_408(strict: Service) -> None:
    with connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n") as client, client.makefile("rb") as answer:
        whole = answer.read()  # returns when the service closes the connection
    assert whole.startswith(b"HTTP/1.1 408 ") and b"longer than 8 seconds" in whole


def test_slow_clients_do_not_block_others_and_too_many_get_503(strict: Service, image_files: list[Path]) -> None:
    assert post(strict, image_files[0].read_bytes()).status_code == 200  # warm-up: a first request takes longer
    slow = [connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n") for _ in range(5)]
    wait_for_requests(strict, 5)
    assert post(strict, image_files[0].read_bytes()).status_code == 200
    slow.append(connected(strict, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n"))
    wait_for_requests(strict, 6)
    busy = post(strict, image_files[0].read_bytes())
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert requests.get(strict.url + "health", timeout=10).status_code == 200
    for client in slow:
        client.close()
    wait_for_requests(strict, 0)
    assert post(strict, image_files[0].read_bytes()).status_code == 200


def test_a_full_queue_gets_503(strict: Service, image_files: list[Path]) -> None:
    response = post(strict, *[image_files[0].read_bytes()] * 30)
    assert response.status_code == 503
    assert post(strict, image_files[0].read_bytes()).status_code == 200


def test_a_flood_of_connections_does_not_stop_the_service(strict: Service) -> None:
    flood = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(60)]
    assert requests.get(strict.url + "health", timeout=10).status_code == 200
    is_open = []
    for client in flood:
        client.setblocking(False)
        try:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            is_open.append(False)
        except BlockingIOError:
            is_open.append(True)
        client.close()
    assert is_open == [False] * 21 + [True] * 39  # the service accepts 40, and closed those that were idle longest


def test_a_client_that_is_refused_before_its_body_keeps_its_connection(
    service: Service, image_files: list[Path]
) -> None:
    """The client sends its body after the refusal, as most clients do, and then sends more requests."""
    body = form(image_files[0].read_bytes())
    refused = HEAD.replace(b"multipart/form-data", b"text/plain") + b"Content-Length: %d\r\n\r\n" % len(body)
    with connected(service, refused) as client:
        assert status_of(client) == 415
        client.sendall(body)
        for _ in range(2):  # together longer than the time that the service waits for the rest of a refused request
            time.sleep(0.6)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert status_of(client) == 200


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "latin-1"])
def test_a_client_cannot_choose_the_decoder_of_file_names(service: Service, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"a" * 500_000 + b"\r\n--b--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = requests.post(service.url + "predict", data=body, headers=kind, timeout=10)
    assert response.status_code == 415


def test_a_file_name_that_is_not_text_gets_a_response(service: Service) -> None:
    body = form(b"plain text").replace(b'filename="a"', b'filename="\xed\xa0\x80"')
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert requests.post(service.url + "predict", data=body, headers=kind, timeout=10).status_code == 422


def test_a_client_that_expects_100_continue_is_refused_before_it_sends(service: Service) -> None:
    with connected(service, HEAD + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n") as client:
        assert client.recv(4000).startswith(b"HTTP/1.1 413 ")


def test_the_service_stops_silently_during_an_upload() -> None:
    with started("-m", "onecycle", "serve", "--port", "0") as service:
        client = connected(service, HEAD + b"Content-Length: 1000\r\n\r\n--b\r\n")
        time.sleep(0.3)
    client.close()


def test_a_client_that_does_not_finish_an_answered_request_is_disconnected(strict: Service) -> None:
    with connected(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n") as client:
        assert status_of(client) == 200
        client.sendall(b"a")
        started_at = time.monotonic()
        assert client.recv(4000) == b""
        assert time.monotonic() - started_at < 4


def test_a_client_that_does_not_read_its_responses_is_disconnected() -> None:
    count, path = 20, "swagger/swagger-ui-bundle.js"
    with started("-c", WITH_LIMITS, repr({"write_seconds": 1.0})) as service:
        size = len(requests.get(f"{service.url}{path}", timeout=10).content)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        with client:
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * count)
            time.sleep(3)
            received = 0
            with suppress(ConnectionResetError):
                while content := client.recv(2**20):
                    received += len(content)
        assert received < count * size
        assert requests.get(service.url + "health", timeout=10).status_code == 200


def test_requests_of_closed_connections_end(strict: Service, image_files: list[Path]) -> None:
    body = form(image_files[0].read_bytes())
    for _ in range(20):
        connected(strict, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body).close()
    time.sleep(0.1)
    wait_for_requests(strict, 0)


# The command


def test_ctrl_c_stops_the_service_at_once() -> None:
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


def test_a_port_in_use_is_reported_in_one_line(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", str(service.port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen at 127.0.0.1, port {service.port}: Address already in use; use another" in line
    for options in (["--port", "99999"], ["--host", "no.such.host.invalid"], ["--host", "a..b"]):
        assert main(["serve", *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_openapi_description_has_every_response(service: Service) -> None:
    description = json.loads(requests.get(service.url + "openapi.json", timeout=10).text)
    assert set(description["paths"]) == {"/predict", "/health"}
    assert {"200", "408", "413", "415", "422", "503"} <= description["paths"]["/predict"]["post"]["responses"].keys()


def test_a_network_without_finite_probabilities_is_named_in_one_line(tmp_path: Path, image_files: list[Path]) -> None:
    tensors, metadata = load_tensors(SHIPPED)
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.fill_(-1)
    (tmp_path / "config.json").write_text("{}")
    save_tensors(tmp_path / "weights.safetensors", tensors, metadata)
    with started("-m", "onecycle", "serve", "--port", "0", "--run", str(tmp_path)) as service:
        for explain in (False, True):
            response = post(service, image_files[0].read_bytes(), explain=explain)
            assert response.status_code == 422
            (answer,) = response.json()["images"]
            assert answer["error"].startswith("the network gives no finite probabilities") and not answer["predictions"]


CHUNKED = b" HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"],
        [b"POST /predict" + CHUNKED + b"g\r\n"],
        [b"POST /nowhere" + CHUNKED + b"g\r\n"],
        [b"HEAD /nowhere" + CHUNKED + b"g\r\n"],
        [b"POST /nowhere" + CHUNKED, b"\r\n\r\n"],  # the body is malformed after the response
        [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\0\r\n\r\n"],
    ],
)
def test_a_malformed_request_is_answered_once_and_not_logged(service: Service, pieces: list[bytes]) -> None:
    # `service` checks at its end that nothing was printed.
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        answer = b""
        for piece in pieces:
            client.sendall(piece)
            answer += client.recv(1000)
        while received := client.recv(1000):
            answer += received
    assert answer.count(b"HTTP/1.1 ") == (2 if b"/health" in pieces[0] else 1)


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_a_request_for_another_protocol_is_answered_and_not_logged(service: Service, protocol: str) -> None:
    # `service` checks at its end that nothing was printed.
    answer = requests.get(service.url + "health", headers={"Connection": "Upgrade", "Upgrade": protocol}, timeout=10)
    assert answer.json()["status"] == "ok"


def test_a_run_folder_whose_name_is_not_text_is_served_with_an_escaped_name(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"caf\xe9")
    run.mkdir()
    (run / "config.json").write_text("{}")
    shutil.copy(SHIPPED, run / "weights.safetensors")
    with started("-m", "onecycle", "serve", "--port", "0", "--run", str(run)) as service:
        for page in ("", "docs", "openapi.json", "health"):
            answer = requests.get(service.url + page, timeout=10)
            assert (answer.status_code, r"caf\udce9" in answer.text.replace("\\\\", "\\")) == (200, True), page
