"""Host names and other sites: which requests the service answers."""

import socket

import pytest
import requests

from onecycle.cli import main

from .conftest import Service, started


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "127.0.0.1",
        "[::1]:8000",
        "[::1]",
        "192.168.1.5:80",
        "@name",
        "@NAME",
    ],
)
def test_the_service_answers_to_names_and_addresses_of_its_machine(service: Service, host: str) -> None:
    name = socket.gethostname()
    host = host.replace("@name", name).replace("@NAME", name.upper())
    assert requests.get(service.url + "health", headers={"Host": host}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["photos.example.org", "localhost.example.org", "127.0.0.1.example.org", "example.org:80:80", "[localhost]", ""],
)
def test_another_host_name_is_refused_and_the_option_is_named(service: Service, name: str) -> None:
    response = requests.get(service.url + "health", headers={"Host": name}, timeout=10)
    assert response.status_code == 400
    assert name.removesuffix(":80") in response.json()["detail"] and "--allowed-host" in response.json()["detail"]


def test_a_request_without_a_host_is_answered(service: Service) -> None:
    """HTTP/1.0 does not require the header. Browsers send it, but some monitors do not."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(b"HEAD /health HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


OWN = "http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": OWN}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": OWN}, False),
        ({"Origin": "https://127.0.0.1:{port}"}, False),  # a proxy receives HTTPS
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://photos.example.org"}, False),  # a proxy replaces the host
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": OWN}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),  # another site sends a form
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, True),
        ({"Origin": "http://127.0.0.1:1"}, True),
        ({"Origin": "http://127.0.0.1"}, True),
        ({"Origin": "http://localhost:{port}"}, True),
        ({"Origin": "https://photos.example.org"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": ""}, True),
    ],
    ids=str,
)
def test_only_the_pages_of_the_service_and_programs_may_use_it(
    service: Service, headers: dict[str, str], is_refused: bool
) -> None:
    headers = {name: value.format(port=service.port) for name, value in headers.items()}
    files = {"files": ("a.png", b"plain text")}
    response = requests.post(service.url + "predict", headers=headers, files=files, timeout=10)
    assert response.status_code == (403 if is_refused else 422)
    assert ("comes from a page of another site" in response.text) == is_refused


def test_another_site_may_link_to_the_page_but_not_read_or_embed_it(service: Service) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert requests.get(service.url, headers=link, timeout=10).status_code == 200
    for mode in ("cors", "no-cors"):
        response = requests.get(service.url, headers={**link, "Sec-Fetch-Mode": mode}, timeout=10)
        assert response.status_code == 403


def test_beyond_this_machine_hosts_are_still_named_and_a_line_says_what_that_means() -> None:
    command = ("-m", "onecycle", "serve", "--host", "0.0.0.0", "--port", "0")
    names = ("--allowed-host", "Photos.example.org", "--allowed-host", "bücher.example")
    warning = (
        "onecycle: the service listens beyond this machine: everyone who can reach it can use it, without a password, "
        "and the connection is not encrypted"
    )
    with started(*command, *names) as service:
        assert service.process.stderr and service.process.stderr.readline() == f"{warning}\n"
        url = f"http://127.0.0.1:{service.port}/"
        for host, status in [
            ("127.0.0.1", 200),
            ("10.1.2.3", 200),
            ("photos.example.org:8443", 200),
            ("xn--bcher-kva.example", 200),
            ("example.org", 400),
        ]:
            assert requests.get(url + "health", headers={"Host": host}, timeout=10).status_code == status, host
        # A proxy that receives requests for an allowed name may replace the Host header.
        for origin, status in [("https://photos.example.org", 422), ("https://example.org", 403)]:
            files = {"files": ("a.png", b"plain text")}
            response = requests.post(url + "predict", headers={"Origin": origin}, files=files, timeout=10)
            assert response.status_code == status, origin


@pytest.mark.parametrize("name", ["https://photos.example.org", "photos.example.org:443", "*.example.org", "a..b", ""])
def test_an_allowed_host_that_is_not_a_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--allowed-host", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"onecycle: --allowed-host is {name!r}; give a host name such as photos.example.org, without port"
