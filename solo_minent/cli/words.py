"""What is printed: once for all processes of a run, and quietly into a pipe that is closed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from solo_minent.machine import is_first_of_node, is_first_process, is_slurm_task, is_torchrun


def say(text: str, file: TextIO | None = None) -> None:
    """Prints once for all processes of a run, started by Lightning, torchrun or Slurm.

    What goes wrong may be known to one of them alone: it is said once a node, and by each once they
    work together.
    """
    if is_first_process() or (file is sys.stderr and (_speaks_for_a_node() or _in_a_group())):
        print(text, file=file)


def say_first(text: str) -> None:
    """Prints on stderr what all processes of a run know, once."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """Printing into a pipe that is closed (| head) ends the program quietly, as in other tools."""
    if not hasattr(signal, "SIGPIPE"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)


def _speaks_for_a_node() -> bool:
    # What Lightning's children have in common with the first process has ended that one before.
    lightnings = not is_torchrun() and not is_slurm_task()
    return lightnings or is_first_of_node()


def _in_a_group() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
