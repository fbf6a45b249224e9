"""Keep all random states while a copy of the network is trained for a trial."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def keep_random_states() -> Iterator[None]:
    """Restore the random states of Python, NumPy and PyTorch after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
