"""The training of a detector: steps that can be repeated, and checkpoints between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solo_minent.distributed import global_max
from solo_minent.errors import UserError
from solo_minent.evaluation.detection_loader import DetectionImages, detection_loader, step_batches
from solo_minent.files import write_text
from solo_minent.schema import DetectConfig


class DetectorTraining(pl.LightningModule):
    """The steps; Lightning's epochs are the stretches between two checkpoints.

    Everything random in a step follows from the seed, the step and the rank.

    Args:
        model: a detector of `build_detector`.
        images: of the training split.
        settings: of the training.
        seed: of the run.
        workers: loader processes.
    """

    def __init__(
        self,
        model: nn.Module,
        images: DetectionImages,
        settings: DetectConfig,
        seed: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.model, self.images, self.settings = model, images, settings
        self.seed, self.workers = seed, workers
        self.losses: list[dict[str, float]] = []  # of the steps since the last checkpoint

    def train_dataloader(self) -> Iterable:
        every = self.settings.checkpoint_every
        first = self.trainer.current_epoch * every
        return self._loader(first, min(first + every, self.settings.steps))

    def _loader(self, first: int, last: int) -> Iterable:
        size, world = self.settings.batch_size, self.trainer.world_size
        batches = step_batches(len(self.images), size, first, last, self.seed)
        own = [batch[self.trainer.global_rank :: world] for batch in batches]
        return detection_loader(self.images, own, self.workers)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        losses = self._losses(batch, step)
        loss = sum(losses.values())
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        diverged = None
        if not math.isfinite(sum(values.values())):
            shown = ", ".join(f"{key} {value:g}" for key, value in values.items())
            diverged = UserError(
                f"training has diverged: {shown} in step {step}. Losses are finite. Lower "
                f"evaluation.detect.lr={self.settings.lr:g}: it is for batches of "
                f"{self.settings.batch_size}."
            )
        self._stop_together(diverged, step)
        self.losses.append(values)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        self._stop_together(batch if isinstance(batch, UserError) else None, step)
        torch.manual_seed((self.seed * 1_000_003 + step) * 1024 + self.trainer.global_rank)
        return self.model(*batch)

    def _stop_together(self, error: UserError | None, step: int) -> None:
        """Raises on every process what one of them has found: the others would wait for it."""
        failed = torch.tensor(float(error is not None), device=self.device)
        if global_max(failed) > 0:
            raise error or UserError(
                f"another process has failed: in step {step} of the detector's training. Its own "
                "line says why. Mend that and start again."
            )

    def on_train_epoch_end(self) -> None:
        if self.trainer.global_step >= self.settings.steps:
            self._precise_bn()

    @torch.no_grad()
    def _precise_bn(self) -> None:
        """Running statistics as the plain mean over batches of the weights that are tested."""
        first, count = self.settings.steps, self.settings.precise_bn
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        if not count or not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for step, batch in enumerate(self._loader(first, first + count), start=first):
            self._losses(self.trainer.strategy.batch_to_device(batch), step)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def configure_optimizers(self) -> dict[str, Any]:
        s = self.settings
        norms = {
            id(parameter)
            for module in self.model.modules()
            if isinstance(module, _BatchNorm)
            for parameter in module.parameters()
        }
        plain = [p for p in self.model.parameters() if id(p) not in norms]
        scales = [p for p in self.model.parameters() if id(p) in norms]
        groups = [
            {"params": plain, "weight_decay": s.weight_decay},
            {"params": scales, "weight_decay": s.weight_decay_norm},
        ]
        optimizer = torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(s, step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def lr_factor(settings: DetectConfig, step: int) -> float:
    """What the learning rate of a step (from 0) is multiplied by: warm-up, then stairs."""
    factor = settings.gamma ** sum(step >= at for at in settings.lr_steps)
    if step < settings.warmup_steps:
        share = step / settings.warmup_steps
        factor *= settings.warmup_factor * (1 - share) + share
    return factor


class Stretches(Checkpoint):
    """`last.ckpt` and `log.csv` (mean losses since the row before) after each stretch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DetectorTraining) -> None:
        taken, module.losses = module.losses, []
        means = {key: sum(one[key] for one in taken) / len(taken) for key in taken[0]}
        self.rows.append({"step": trainer.global_step, **means})
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            lines = [",".join(self.rows[0])]
            lines += [",".join(f"{value:.6g}" for value in row.values()) for row in self.rows]
            write_text(self.folder / "log.csv", "\n".join(lines) + "\n")
