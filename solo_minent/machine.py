"""What this machine lends to a process."""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def cores() -> int:
    """CPU cores that this process may use; a launcher such as Slurm may have tied it to some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_each(processes: int) -> int:
    """Cores for one of the processes that share this machine; those it is tied to are its own."""
    return min(cores(), max(1, (os.cpu_count() or 1) // processes))


def available_memory() -> int:
    """Bytes that this process may still take before the system swaps or ends it."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = LIMIT.read_text().strip()
    except OSError:
        return free
    used = psutil.Process().memory_info().rss
    return min(free, int(limit) - used) if limit.isdigit() else free
