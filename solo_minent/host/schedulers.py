"""Learning-rate schedules that solo-learn expects, with a state that can be saved."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PlainState:
    """In front of a scheduler class: a `state_dict` of plain values only.

    solo-learn's `static_lr` (SimSiam, NNSiam) sets `scheduler.get_lr` to a `functools.partial`,
    which torch's `state_dict` would include: the checkpoint then cannot be written (wheel, LARS),
    or cannot be opened with `weights_only=True`, the default since torch 2.6.
    """

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().state_dict().items() if not callable(v)}


class LinearWarmupCosineAnnealingLR(PlainState, LRScheduler):
    """Linear warm-up, then half a cosine, in closed form.

    Takes the arguments and gives the values of the scheduler of this name in lightning-bolts,
    which solo-learn 1.0.2 uses: with W warm-up epochs of T epochs, the rate at epoch e is
    `start + e (base - start) / (W - 1)` for e < W, and
    `min + (base - min) (1 + cos(pi (e - W) / (T - W))) / 2` from then on.

    Args:
        optimizer: whose groups are scheduled.
        warmup_epochs: W.
        max_epochs: T.
        warmup_start_lr: rate at epoch 0, absolute.
        eta_min: rate at epoch T, absolute.
        last_epoch: epoch to go on from.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float,
        max_epochs: float,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [self._lr(float(base)) for base in self.base_lrs]

    def _lr(self, base: float) -> float:
        if self.last_epoch < self.warmup_epochs:
            rise = (base - self.warmup_start_lr) / max(self.warmup_epochs - 1, 1)
            return self.warmup_start_lr + self.last_epoch * rise
        length = max(self.max_epochs - self.warmup_epochs, 1)
        angle = math.pi * (self.last_epoch - self.warmup_epochs) / length
        return self.eta_min + 0.5 * (base - self.eta_min) * (1 + math.cos(angle))
