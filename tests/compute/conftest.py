"""Fixtures of the tests that compute."""

from collections.abc import Iterator

import pytest

from onecycle.compute.kernels import amx, native


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C compiler."""
    monkeypatch.setenv("CC", "no-such-compiler")
    native._compiled_or_reason.cache_clear()
    amx.is_available.cache_clear()
    yield
    native._compiled_or_reason.cache_clear()
    amx.is_available.cache_clear()
