"""How a run is stopped from outside: SIGTERM, SIGUSR1, Ctrl-C."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback


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
    """Notes the signals that ask for a stop while a run trains.

    Attributes:
        received: number of the first such signal that came; 0 for none.
    """

    received = 0
