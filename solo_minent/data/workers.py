"""Loader processes that outlive a signal to all processes of a run, until the run has saved."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
from types import TracebackType

_ASKING = {getattr(signal, n) for n in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, n)}


def calm(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: what asks the run to stop does not end its workers.

    A terminal sends Ctrl-C, torchrun and some queues send SIGTERM to every process of a run. The
    run itself answers, after a step for which it may still need its workers' batches. From the
    process that started it a worker still takes SIGTERM: so PyTorch ends one that hangs.

    Args:
        worker: its number in the loader.
    """
    for signum in _ASKING - {signal.SIGTERM}:
        signal.signal(signum, signal.SIG_IGN)
    sys.excepthook = _no_word_of_the_dead
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigtimedwait"):  # alone tells who sent a signal
        # Blocked in this thread and those to come; the one that waits for it takes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(parent,), daemon=True).start()


def _no_word_of_the_dead(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A run that was killed leaves the threads of its workers with a connection that is cut."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_when_told(parent: multiprocessing.process.BaseProcess) -> None:
    # PyTorch looks whether its parent lives, which is the fork server where there is one.
    while parent.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, 2)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)


def calm_forkserver() -> multiprocessing.context.BaseContext:
    """The `multiprocessing_context` forkserver, whose server and workers do not end either.

    The server has no `worker_init_fn`: it starts with these signals blocked, and hands that down to
    all threads of its workers. A worker imports libraries that start threads of their own before
    `calm` runs; one that does not block SIGTERM takes it and ends the process. A server that runs
    already stays as it is.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # when it starts, it unblocks signals of this thread
    blocked = _ASKING if hasattr(signal, "sigtimedwait") else set()  # `calm` takes SIGTERM by it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")
