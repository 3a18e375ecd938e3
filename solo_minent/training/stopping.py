"""How a run is stopped from outside: SIGTERM, SIGUSR1, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

# SIGUSR1 is what Slurm is told to send; Windows has none.
ASKING = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, n)]
LAST_WORDS = 60  # seconds that other processes of a stopped run have to end by themselves


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state.

    Attributes:
        signum: number of the signal.
        step: optimiser steps that the checkpoint holds.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum, self.step = signum, step


class Signals(Callback):
    """Notes the signals that ask for a stop while a run trains: SIGTERM, SIGUSR1, Ctrl-C.

    Put it before every other callback. `Saving` answers between two steps; where one process of
    several got the signal, all stop at the same step, one later. What comes in the last step of an
    epoch, in validation or the online kNN is answered at the epoch's end (among several processes
    perhaps a step later); what comes before training begins, at the first step. In the last epoch
    the run ends as it would have.

    A Ctrl-C after the first signal ends the run at once. Other signals than these, and these while
    no run trains, do what they did before.

    Attributes:
        received: number of the first such signal that came; 0 for none.

    Raises:
        KeyboardInterrupt: wherever the main thread is, at the second signal if it is Ctrl-C.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._pid = 0
        self._speaks = True

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.received, self._pid, self._speaks = 0, os.getpid(), trainer.is_global_zero
        # Lightning's own handler of SIGTERM broadcasts between processes from wherever it
        # interrupts, and its loop then ends the run with exit status 0 and nothing saved.
        connector = getattr(trainer, "_signal_connector", None)
        if hasattr(connector, "register_signal_handlers"):
            connector.register_signal_handlers = _nothing

        # Without that handler there is nothing to tell: a broadcast and a wait in every step.
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = _nothing
        if threading.current_thread() is threading.main_thread():  # others may not
            self._before = {signum: signal.getsignal(signum) for signum in ASKING}
            self._install()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._install()  # again, for a Lightning that keeps its handlers elsewhere

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self.restore()
        if isinstance(exception, Stopped | KeyboardInterrupt):
            _end_launched(trainer, at_once=isinstance(exception, KeyboardInterrupt))

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Puts back the handlers that were there before the run."""
        for signum, handler in self._before.items():
            if handler is not None:  # else it was not installed from Python
                signal.signal(signum, handler)
        self._before = {}

    def _install(self) -> None:
        for signum in self._before:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader process that was forked: the run itself answers
            return
        if self.received:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signum
        if self._speaks:
            name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            again = " again" if signum == signal.SIGINT else ""
            line = f"stopping: {name}, the run saves at the next step; Ctrl-C{again} stops at once"
            # Not print: the signal may have interrupted one. Below a progress bar, if there is one.
            with contextlib.suppress(OSError):
                os.write(2, f"{os.linesep if os.isatty(2) else ''}{line}\n".encode())


def _nothing() -> None:
    """In place of Lightning's registration of its handlers, and of what asks for them."""


def _end_launched(trainer: Trainer, at_once: bool) -> None:
    """Waits for the processes that Lightning started on this machine, or kills them.

    Lightning watches them and kills this process as well when one ends with another status than 0;
    a list that is empty it lets alone.
    """
    watched = getattr(trainer.strategy.launcher, "procs", [])
    processes = list(watched)
    watched.clear()
    for process in processes:
        try:
            process.wait(0 if at_once else LAST_WORDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
