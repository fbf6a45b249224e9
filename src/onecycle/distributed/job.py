"""The torchrun job that this process belongs to, as torchrun's environment variables describe it."""

import os

STORE_FILE = "ONECYCLE_STORE_FILE"
"""The environment variable that names a file. Processes of one machine find each other through the file, not a port."""


def is_part() -> bool:
    """Whether a launcher such as torchrun started this process, alone or as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_part_of_launch() -> bool:
    """Whether `onecycle train --processes` started this process."""
    return STORE_FILE in os.environ


def name() -> str | None:
    """The name of the job, or None without torchrun. A restarted job keeps its name."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def may_have_started_before() -> bool:
    """Whether this job may have run before.

    This is so if torchrun restarted the job, or if the user named it: a job can be started again under the same name.
    """
    was_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return was_restarted or name() not in (None, "none")  # torchrun names a job "none" if the user does not name it
