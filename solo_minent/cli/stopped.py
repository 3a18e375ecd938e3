"""How pretraining ends that a signal stopped: what is said, Slurm's queue, the exit status."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from solo_minent.cli.words import say_first
from solo_minent.machine import (
    is_first_of_node,
    is_first_process,
    is_interactive_slurm,
    is_slurm_task,
    is_torchrun,
)

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def end(signum: int, step: int) -> int:
    """Says how a run goes on that has saved and stopped; puts its Slurm job back into the queue.

    Slurm's job goes back at SIGUSR1, the warning before its time limit that `sbatch --signal` asks
    for, and not at SIGTERM: that is scancel, or a preemption after which Slurm itself requeues.

    Args:
        signum: the signal.
        step: optimiser steps done.

    Returns:
        Exit status: 130 after Ctrl-C, else REQUEUE, in the first process of those that one launcher
        watches. It is 0 in the others, as a launcher kills the rest of a run at the first other
        status.
    """
    job = _slurm_job() if signum == getattr(signal, "SIGUSR1", None) else None
    then = f"job {job} goes back into the queue" if job else _how_to_continue()
    say_first(f"stopped after step {step}, saved; {then}")
    if job and is_first_process():
        _requeue(job)
    if not _reports():
        return 0
    return INTERRUPTED if signum == signal.SIGINT else REQUEUE


def _slurm_job() -> str | None:
    """The batch job that this process belongs to, as `scontrol requeue` takes it."""
    if "SLURM_JOB_ID" not in os.environ or is_interactive_slurm():
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
        return "_".join(os.environ.get(name, "") for name in names)
    return os.environ["SLURM_JOB_ID"]


def _requeue(job: str) -> None:
    """Puts the job back into the queue, or says in one line why that did not work."""
    if not re.fullmatch(r"\d+(_\d+)?", job, re.ASCII):
        reason = "that is no number of a job"
    else:
        try:
            done = subprocess.run(
                ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
            )
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            reason = f"scontrol: {said}" if done.returncode else None
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = " ".join(str(error).split())
    if reason:
        say_first(
            f"job {job} cannot be put back into the queue ({reason}); "
            "submitted again it continues the run"
        )


def _how_to_continue() -> str:
    if is_torchrun():  # which does not tell its own command line
        return "the same torchrun command continues the run"
    if "SLURM_JOB_ID" in os.environ and not is_interactive_slurm():
        return "the same job, submitted again, continues the run"
    import __main__

    spec = getattr(__main__, "__spec__", None)
    if spec is None:
        program = [_short(sys.argv[0])]
    else:  # python -m solo_minent
        program = [_short(sys.executable), "-m", spec.name.removesuffix(".__main__")]
    return f"the same command continues the run: {shlex.join([*program, *sys.argv[1:]])}"


def _short(program: str) -> str:
    """Its name alone where the shell finds it by that."""
    found = shutil.which(Path(program).name)
    return Path(program).name if found and Path(found) == Path(program) else program


def _reports() -> bool:
    """Whether this process has the exit status of a stopped run.

    Of srun's tasks the first one: srun ends all of them at the first that fails. torchrun and
    Lightning watch the processes of one machine.
    """
    return is_first_process() if is_slurm_task() else is_first_of_node()
