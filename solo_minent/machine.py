"""What this machine lends to a process, and which one of a run it is."""

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


# Which process this is, before a process group exists. As Lightning tells the launchers apart:
# torchrun, also inside a Slurm job; Slurm; its own children, or the same command on every node.


def is_interactive_slurm() -> bool:
    """Whether this is a shell in a Slurm job, whose variables then say nothing of the process."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def is_slurm_task() -> bool:
    """Whether Slurm started this process as one of a run's."""
    return "SLURM_NTASKS" in os.environ and not is_torchrun() and not is_interactive_slurm()


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_process() -> bool:
    """Whether this is the first process of a run, over all nodes."""
    if is_torchrun():
        return _zero("RANK")
    if is_slurm_task():
        return _zero("SLURM_PROCID")
    # JSM: the launcher of LSF.
    return _zero("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK")


def is_first_of_node() -> bool:
    """Whether this is the first of a run's processes on its node."""
    return _zero("SLURM_LOCALID" if is_slurm_task() else "LOCAL_RANK")


def _zero(*names: str) -> bool:
    return all(os.environ.get(name, "0") == "0" for name in names)
