"""Loader processes that outlive a signal to all processes of a run, until the run has saved."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def calm(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: what asks the run to stop does not end its workers.

    A terminal sends Ctrl-C, torchrun and some queues send SIGTERM to every process of a run. The
    run itself answers, after a step for which it may still need its workers' batches. From the
    process that started it a worker still takes SIGTERM: so PyTorch ends one that hangs.

    Args:
        worker: its number in the loader.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # it alone tells who sent a signal
        # Blocked in this thread and those to come; the one that waits for it takes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(parent.pid,), daemon=True).start()


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
