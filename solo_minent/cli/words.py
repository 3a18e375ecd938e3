"""What is printed: once for all processes of a run, and quietly into a pipe that is closed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Prints once for all processes of a run, started by Lightning, torchrun or Slurm.

    What goes wrong once they work together is said by each: one of them alone may know.
    """
    if is_first() or (file is sys.stderr and _in_a_group()):
        print(text, file=file)


def say_first(text: str) -> None:
    """Prints on stderr what all processes of a run know, once."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this is the first process of a run."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


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


def _in_a_group() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
