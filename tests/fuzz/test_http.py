"""No request, valid or not, disturbs the service, and every response to a valid one matches the OpenAPI description."""

import itertools
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from mutated_images import mutated_image
from mutations import Draw, mutated_bytes
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serve.conftest import Service

Fuzz = Callable[[Callable[[], None]], None]

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/predict", "POST", GenerationMode.POSITIVE),
        ("/predict", "POST", GenerationMode.NEGATIVE),
        ("/health", "GET", GenerationMode.POSITIVE),  # takes no parameters, so no request is invalid
    ],
)
def test_every_response_matches_the_openapi_description(
    service: Service,
    path: str,
    method: str,
    mode: GenerationMode,
    fuzz: Fuzz,
) -> None:
    def check() -> None:
        description = schemathesis.openapi.from_url(service.url + "openapi.json")
        operation = description[path][method]

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        def check_case(case: Case) -> None:
            case.call_and_validate(checks=CHECKS)

        fuzz(check_case)

    with ThreadPoolExecutor(1) as pool:  # a new thread, because Playwright may have left an event loop in this one
        pool.submit(check).result()


MOST_SECONDS = 5
MOST_MIB = 1024  # of the service with its decoders

_METHODS = [*b"GET POST HEAD PUT OPTIONS CONNECT TRACE get PRI".split(), b"", b"A" * 5000]
_TARGETS = [
    *b"/predict /predict?top=3 /predict?explain=true /health /health#x / // /docs *".split(),
    *b"/predict?top=1e400 http://x/health /../../etc/passwd".split(),
    *b"/%2e%2e/%00 /swagger/../openapi.json /predict?top=\xff".split(),
    *(b"", b"/" + b"a" * 70_000, b"/predict?" + b"top=1&" * 3000, b"/predict?top=" + b"9" * 5000),
]
_VERSIONS = [*[b"HTTP/1.1"] * 6, *b"HTTP/1.0 HTTP/2.0 HTTP/0.9 HTTP/9 HTTPS/1.1".split(), b""]
_HEADERS = [
    *b"Host Content-Length Transfer-Encoding Content-Type Expect".split(),
    *b"Connection Origin Sec-Fetch-Site Upgrade Range".split(),
    *(b"Content-Encoding", b"Cookie", b"", b"A B", b"\xff", b" Host", b"X" * 5000),
]
_VALUES = [
    *b"0 -1 +5 0x10 \xff\xfe \xc2\xb2 a\0b chunked localhost [::1] evil.example 127.0.0.1:99999 null".split(),
    *b"cross-site 100-continue close h2c bytes=0-".split(),
    *(b"", b"5, 5", b"9" * 30, b"a\rb", b"x" * 70_000, b"gzip, chunked"),
    *(b"multipart/form-data; boundary=" + end for end in (b"", b"b" * 9000, b"b; charset=utf-7")),
]
_DISPOSITIONS = [
    b'form-data; name="files"; filename="a.png"',
    b'form-data; name="files"',
    b'form-data; name="files"; filename=""',
    b'form-data; name="files"; filename="../../etc/\x1b[31m\xff"',
    b"form-data; name=\"files\"; filename*=UTF-8''%00%ff%e2%80%ae.png",
    b"form-data; name=\"files\"; filename*=idna''" + b"a" * 5000,
    b'form-data; filename="a"',
    b"form-data; name=files; name=files; filename=a; filename=b",
    b"attachment",
    b"form-data; " + b";" * 9000,
    b"",
]


def _form(draw: Draw) -> bytes:
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        lines = [b"Content-Disposition: " + draw(st.sampled_from(_DISPOSITIONS))]
        lines += draw(
            st.lists(
                st.sampled_from(
                    [b"Content-Type: image/png", b"Content-Transfer-Encoding: base64", b"x", b": y", b"A:" * 9000]
                ),
                max_size=2,
            )
        )
        content = mutated_image(draw) if draw(st.booleans()) else draw(st.binary(max_size=50))
        parts.append(b"--b\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) * draw(st.sampled_from([1, 1, 1, 2, 40])) + b"--b--\r\n"


def _request(draw: Draw) -> bytes:
    """A request that is nearly right, or has odd lines."""
    body = _form(draw)
    headers = {
        b"Host": b"127.0.0.1",
        b"Content-Type": b"multipart/form-data; boundary=b",
        b"Content-Length": b"%d" % len(body),
    }
    if draw(st.integers(0, 3)) == 0:
        del headers[b"Content-Length"]
        headers[b"Transfer-Encoding"] = b"chunked"
        body = _chunked(draw, body)
    lines = [b": ".join(header) for header in headers.items()]
    for _ in range(draw(st.integers(0, 3))):
        line = (
            draw(st.sampled_from(_HEADERS))
            + draw(st.sampled_from([b": ", b":", b"", b" : "]))
            + draw(st.sampled_from(_VALUES))
        )
        if draw(st.booleans()) and lines:
            lines[draw(st.integers(0, len(lines) - 1))] = line
        else:
            lines.append(line)
    lines *= draw(st.sampled_from([1] * 9 + [200]))
    is_odd = draw(st.booleans())
    method = draw(st.sampled_from(_METHODS)) if is_odd else b"POST"
    target = draw(st.sampled_from(_TARGETS)) if is_odd else b"/predict"
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r"]))
    content = end.join([b" ".join([method, target, draw(st.sampled_from(_VERSIONS))]), *lines, b"", b""]) + body
    return mutated_bytes(draw, content) if draw(st.integers(0, 3)) == 0 else content


def _chunked(draw: Draw, body: bytes) -> bytes:
    sizes = [b"%x" % len(body)] * 6 + [
        b"-1",
        b"0",
        b"f" * 20,
        b"g",
        b"",
        b"1" * 9000,
        b"5;" + b"e" * 9000,
        b"0x5",
        b" 5",
    ]
    return (
        draw(st.sampled_from(sizes))
        + b"\r\n"
        + body
        + b"\r\n"
        + draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"0\r\n" + b"A: b\r\n" * 5000]))
    )


def _answer(service: Service, content: bytes, pieces: list[float]) -> bytes:
    """All that the service answers to `content`, which is sent in pieces."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=2 * MOST_SECONDS) as client:
        bounds = [0, *sorted(int(piece * len(content)) for piece in pieces), len(content)]
        answer = b""
        with suppress(OSError):  # the service may refuse a request before it has arrived
            for start, end in itertools.pairwise(bounds):
                client.sendall(content[start:end])
            client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while received := client.recv(2**16):
                answer += received
        return answer


def test_no_request_disturbs_the_service(service: Service, fuzz: Fuzz) -> None:
    files = service.files()

    @settings(max_examples=60, database=None, phases=[Phase.generate])
    @given(data=st.data())
    def check(data: DataObject) -> None:
        content, pieces = _request(data.draw), data.draw(st.lists(st.floats(0, 1), max_size=3))
        started = time.monotonic()
        answer = _answer(service, content, pieces)
        statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE)]
        assert (statuses or not answer) and all(status < 500 for status in statuses), answer
        while requests.get(service.url + "health", timeout=MOST_SECONDS).json()["requests"]:  # still decodes the images
            assert time.monotonic() - started <= MOST_SECONDS, content
        assert service.memory_mib() <= MOST_MIB, content
        assert service.files() == files

    fuzz(check)
