"""Whatever a program sends that the description allows, or does not: no server error, and only described answers."""

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
        ("/health", "GET", GenerationMode.POSITIVE),  # which takes nothing, and so nothing that is wrong
    ],
)
def test_every_answer_is_one_that_is_described(service: Service, path: str, method: str, mode: GenerationMode) -> None:
    def answered() -> None:
        description = schemathesis.openapi.from_url(service.url + "openapi.json")
        operation = description[path][method]

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        def each(case: Case) -> None:
            case.call_and_validate(checks=CHECKS)

        each()

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests has its loop in this thread
        pool.submit(answered).result()
