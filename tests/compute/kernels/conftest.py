"""Fixtures of the tests of the kernels in C."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads(native_kernels: None) -> Iterator[None]:
    """Fix the random numbers, and restore the number of threads after a test."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
