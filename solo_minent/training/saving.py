"""The run's checkpoint: when it is written, and what each process adds to it.

A checkpoint is written between two steps, or after an epoch. What differs between processes (random
numbers, sums of an epoch's means) is gathered into it: a run that goes on from it on as many
processes ends bit for bit as one that was never interrupted. On another number of processes (with
`--resume-from`) these start afresh, and the log's row of that epoch is the mean of its rest.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.data.epochs import derive_seed
from solo_minent.distributed import Agreement, is_distributed, rank, world_size
from solo_minent.schema import RunConfig
from solo_minent.training.folder import ENTRY, entry
from solo_minent.training.stopping import Signals, Stopped

SAVE = 1  # what processes agree on; any larger number is SAVE + a signal that stops the run


class RankState(Protocol):
    """What has a state of its own on each process: plain values and tensors."""

    def rank_state(self) -> Any: ...

    def load_rank_state(self, state: Any) -> None: ...


class Saving(Checkpoint):
    """Writes `last.ckpt` between steps and epochs, and stops the run there when a signal asks.

    Put it behind every other callback. With gradient accumulation a step is an optimiser step.

    Args:
        config: of the run, which goes into the checkpoint.
        signals: what came in from outside.
        holders: by name, what has a state on each process.

    Raises:
        Stopped: a signal came; the checkpoint is written.
    """

    def __init__(
        self,
        config: RunConfig,
        signals: Signals,
        holders: dict[str, RankState],
    ) -> None:
        self.config, self.settings, self.signals = config, config.checkpoint, signals
        self.path = config.run_dir / CHECKPOINT_FILE
        self.holders: dict[str, RankState] = {"random": RandomState(), **holders}
        self._late = 0  # agreed on at the last step of an epoch, done at its end
        self._stale = False  # the next answer is to a question from before a save
        self._loaded: list[dict[str, Any]] | None = None

    # When.

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step, self.saved_at = trainer.global_step, time.monotonic()
        self.agreement = Agreement(timedelta(minutes=self.config.process_timeout))
        # Last of all that draws random numbers before the first step.
        loaded, self._loaded = self._loaded, None
        if loaded is not None and len(loaded) == world_size():
            for name, holder in self.holders.items():
                if name in loaded[rank()]:  # --resume-from may add one: data.on_corrupt=skip
                    holder.load_rank_state(loaded[rank()][name])
        elif is_distributed():  # each process drops other paths
            torch.manual_seed(derive_seed(self.config.seed, rank(), self._step))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before, self._step = self._step, trainer.global_step
        if self._step == before:  # gradients accumulate
            return
        agreed = self._agreed()
        every = self.settings.every_steps
        if every and self._step % every == 0:
            agreed = max(agreed, SAVE)
        if batch_idx + 1 == trainer.num_training_batches:
            # Lightning would pass over the validation and the end of the epoch on a restart here.
            self._late = agreed
        elif agreed:
            self._save(trainer, agreed)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        agreed, self._late = max(self._late, self._agreed()), 0
        if epoch == trainer.max_epochs:
            self._save(trainer, SAVE)  # what is left to do is done sooner than started again
        elif agreed or epoch % self.settings.every_epochs == 0:
            self._save(trainer, agreed)

    def _agreed(self) -> int:
        """What all processes do now: nothing (0), SAVE, or SAVE + a signal."""
        agreed = self.agreement.largest(self._wanted())
        done, self._stale = self._stale and agreed == SAVE, False
        return 0 if done else agreed

    def _wanted(self) -> int:
        if self.signals.received:
            return SAVE + self.signals.received
        minutes = self.settings.every_minutes
        return SAVE if minutes and time.monotonic() - self.saved_at >= 60 * minutes else 0

    def _save(self, trainer: Trainer, agreed: int) -> None:
        self.saved_at, self._stale = time.monotonic(), is_distributed()
        trainer.save_checkpoint(self.path)
        if agreed > SAVE:
            raise Stopped(agreed - SAVE, trainer.global_step)

    # What.

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint |= entry(self.config, _gather(self.holders))

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint[ENTRY]["ranks"]


class RandomState:
    """The generators that layers such as drop path draw from."""

    def rank_state(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        version, numbers, gauss_next = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
            "python": [version, list(numbers), gauss_next],
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        version, numbers, gauss_next = state["python"]
        random.setstate((version, tuple(numbers), gauss_next))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def _gather(holders: dict[str, RankState]) -> list[dict[str, Any]]:
    """The states of every process, in the order of their ranks."""
    own = {name: holder.rank_state() for name, holder in holders.items()}
    if not is_distributed():
        return [own]
    states: list[dict[str, Any]] = [{}] * world_size()
    dist.all_gather_object(states, own)
    return states
