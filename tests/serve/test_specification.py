"""Generated requests, valid and invalid, never cause a server error. Every response matches the OpenAPI description."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Service

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
    service: Service, path: str, method: str, mode: GenerationMode
) -> None:
    def check() -> None:
        description = schemathesis.openapi.from_url(service.url + "openapi.json")
        operation = description[path][method]

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        def check_case(case: Case) -> None:
            case.call_and_validate(checks=CHECKS)

        check_case()

    with ThreadPoolExecutor(1) as pool:  # a new thread, because Playwright may have left an event loop in this one
        pool.submit(check).result()
