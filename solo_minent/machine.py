"""What this machine lends to a process."""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores that this process may use; a launcher such as Slurm may have tied it to some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_each(processes: int) -> int:
    """Cores for one of the processes that share this machine; those it is tied to are its own."""
    return min(cores(), max(1, (os.cpu_count() or 1) // processes))
