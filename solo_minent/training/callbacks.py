"""Lightning callbacks of a pretraining run: kNN while training, weight decay, the log."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from solo_minent.data.epochs import ReadableImages
from solo_minent.distributed import global_max
from solo_minent.errors import UserError
from solo_minent.evaluation.features import extract_features
from solo_minent.evaluation.knn import knn_predict
from solo_minent.files import write_text
from solo_minent.schedules import cosine


class OnlineKNN(Callback):
    """Majority-vote kNN accuracy of the frozen backbone on held-out images, as `knn_acc1`, in %.

    Args:
        train_loader: labelled images, (images, targets), without augmentation.
        test_loader: held-out images.
        every: epochs between two evaluations; the first and the last state are always evaluated.
        k: neighbours, Euclidean.
    """

    def __init__(self, train_loader: DataLoader, test_loader: DataLoader, every: int, k: int):
        self.loaders = (train_loader, test_loader)
        self.every, self.k = every, k

    def accuracy(self, module: LightningModule) -> float:
        (train, labels), (test, truth) = (
            extract_features(module.backbone, loader, progress=False) for loader in self.loaders
        )
        predicted = knn_predict(train, labels, test, self.k, None, "euclidean")
        return 100.0 * (predicted == truth).double().mean().item()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            value = self.accuracy(module) if trainer.is_global_zero else None
            module.log("knn_acc1", trainer.strategy.broadcast(value), rank_zero_only=True)


class WeightDecay(Callback):
    """Weight decay of each step: half a cosine over the run, where a group decays at all.

    A function of the step, so it resumes by itself (TWIST's ViTs; DINO's schedule).

    Args:
        start: of the first step.
        end: after the last step.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        t = trainer.global_step / trainer.estimated_stepping_batches
        for group in trainer.optimizers[0].param_groups:
            if group["weight_decay"] != 0:
                group["weight_decay"] = cosine(self.start, self.end, t)


class CorruptImages(Callback):
    """Counts the images that could not be decoded (`corrupt_images`) and lists them in a file.

    Its state lets a run that goes on within an epoch count those of the earlier steps as well.

    Args:
        readable: of the training loader.
        path: text file, one name a line, rewritten when more are found.
    """

    def __init__(self, readable: ReadableImages, path: Path):
        self.readable, self.path, self.known = readable, path, 0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        flags = self.readable.corrupt.to(module.device, torch.float32)
        found = global_max(flags).nonzero().flatten().tolist()
        module.log("corrupt_images", float(len(found)), rank_zero_only=True)
        if len(found) > self.known and trainer.is_global_zero:
            names = "".join(f"{self.readable.images.name_of(index)}\n" for index in found)
            write_text(self.path, names)
            print(f"corrupt images replaced: {len(found)}, listed in {self.path}", file=sys.stderr)
        self.known = len(found)

    def rank_state(self) -> dict[str, Any]:
        """The images that this process found, and how many of all processes are in the file."""
        flags = self.readable.corrupt
        found = flags.nonzero().flatten().tolist()
        return {"images": len(flags), "found": found, "known": self.known}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        flags = self.readable.corrupt
        if state["images"] == len(flags):  # --resume-from may train on another set
            flags[state["found"]] = True  # in place: workers share it
            self.known = state["known"]


class EpochLog(Callback):
    """`log.csv`: one row an epoch with every metric, plus epoch 0 = before training.

    `lr` is the rate of the epoch's last step. The rows travel in the checkpoint, so a resumed run
    has no gaps and no repeats. A metric that is not finite ends the run.

    Args:
        path: the CSV file, rewritten whole after each epoch.
        knn: evaluated before training for row 0, if given.
        lines: print one line an epoch, for logs without a progress bar.
    """

    def __init__(self, path: Path, knn: OnlineKNN | None, lines: bool):
        self.path, self.knn, self.lines = path, knn, lines
        self.rows: list[dict[str, float]] = []
        self.lr = math.nan
        self.started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.lr = state["rows"], state["lr"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.started = time.monotonic()
        if trainer.is_global_zero and self.knn and not self.rows:
            self._add({"epoch": 0, "knn_acc1": self.knn.accuracy(module)})

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        module.meter.reset()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = module.meter.means(module.device)
        epoch = trainer.current_epoch + 1
        self._add({"epoch": epoch, "lr": self.lr, **metrics}, trainer)
        diverged = [key for key, value in metrics.items() if not math.isfinite(value)]
        if diverged:
            raise UserError(
                f"training has diverged: {', '.join(diverged)} not finite in epoch {epoch}. "
                f"The last good state is the checkpoint before it. Lower optimizer.lr, in a new "
                "run with another name=…"
            )

    def _add(self, row: dict[str, float], trainer: Trainer | None = None) -> None:
        self.rows.append(row)
        if trainer is not None and not trainer.is_global_zero:
            return
        write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False))
        if self.lines and trainer is not None:
            seconds = time.monotonic() - self.started
            shown = [k for k in row if k.startswith("train_") and k.endswith("_loss")]
            shown += [k for k in ("val_acc1", "knn_acc1") if k in row]
            values = "  ".join(f"{key} {row[key]:.4g}" for key in shown)
            print(f"epoch {row['epoch']}/{trainer.max_epochs}  {values}  {seconds:.0f} s")
