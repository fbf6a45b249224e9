"""What this process was started as a part of, by what torchrun tells it in its environment."""

import os


def is_part() -> bool:
    """Whether this process was started as one of several, or of what may be several when others come."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def name() -> str | None:
    """The name under which all starts of the job are known; None where each start is one for itself."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    return given if restarts() or given != "none" else None  # which is what torchrun calls a job without a name


def restarts() -> int:
    """How many times the processes of the job were started again after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
