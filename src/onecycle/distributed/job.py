"""What this process was started as a part of, by what torchrun tells it in its environment."""

import os


def is_part() -> bool:
    """Whether this process was started as one of several, or of what may be several when others come."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def name() -> str | None:
    """The name of the job, which several starts of it have in common; None where it has none."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def may_have_begun() -> bool:
    """Whether there may have been an earlier start of this very job."""
    was_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return was_restarted or name() not in (None, "none")  # which is what torchrun calls one without a name
