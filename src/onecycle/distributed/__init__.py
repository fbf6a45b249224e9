"""Several processes that train one run: process group, heartbeat, consistency checks, deterministic sums, launchers."""
