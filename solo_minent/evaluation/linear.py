"""Linear evaluation: solo-learn's LinearModel on features that were extracted once."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from solo_minent import host
from solo_minent.console import progress_bar, quiet_lightning
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import Features
from solo_minent.schema import LinearConfig


class ExponentialDecay(Callback):
    """Learning rate of each epoch, from the first to the last in equal ratios; shows a bar."""

    def __init__(self, first: float, last: float, progress: bool):
        self.first, self.last = first, last
        self.progress = progress_bar(progress)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.progress.start()
        self.task = self.progress.add_task("linear probe", total=trainer.max_epochs)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        t = trainer.current_epoch / max(trainer.max_epochs - 1, 1)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.first * (self.last / self.first) ** t

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.progress.advance(self.task)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()


def linear_accuracy(
    features: Features,
    num_classes: int,
    config: LinearConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Trains a linear classifier on frozen features; the last epoch counts, not the best.

    The protocol is MinEnt's (github.com/LiShuo1001/MinEnt @ d17ed2f): Adam, learning rate falling
    exponentially per epoch, cached features without augmentation.

    Args:
        features: of both splits.
        num_classes: C; labels are 0 … C - 1.
        config: hyper-parameters.
        seed: of the initialisation and the batch order.
        progress: show a bar.

    Returns:
        `top1`, `top5` (top C below five classes) and `train_top1`, in percent.

    Raises:
        UserError: unlabelled images or labels beyond C.
    """
    config = config or LinearConfig()
    low, high = int(features.train_labels.min()), int(features.train_labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"labels do not suit a linear probe: {low} to {high} with {num_classes} classes. "
            "They must be 0 … classes - 1. Evaluate on a labelled data set."
        )
    host_config = host.LinearConfig(
        num_classes=num_classes,
        max_epochs=config.max_epochs,
        batch_size=config.batch_size,
        optimizer="adam",
        lr=config.lr,
        weight_decay=config.weight_decay,
        scheduler="none",
    )
    with torch.random.fork_rng(), quiet_lightning():
        torch.manual_seed(seed)
        frozen = nn.Identity()
        frozen.num_features = features.train.shape[1]
        module = host.linear_probe(frozen, host_config)
        loader = DataLoader(
            _Batches(features.train, features.train_labels, config.batch_size), batch_size=None
        )
        trainer = pl.Trainer(
            max_epochs=config.max_epochs,
            accelerator="auto",
            devices=1,
            callbacks=[ExponentialDecay(config.lr, config.final_lr, progress)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, loader)
    head = module.classifier.cpu().eval()
    test = _accuracies(head, features.test, features.test_labels)
    train = _accuracies(head, features.train, features.train_labels)
    return {**test, "train_top1": train["top1"]}


class _Batches(IterableDataset):
    """A shuffled epoch of feature batches, by one indexing operation a batch."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int):
        self.features, self.labels, self.batch_size = features, labels, batch_size

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.features)).split(self.batch_size):
            yield self.features[rows], self.labels[rows]


@torch.inference_mode()
def _accuracies(head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    logits = head(features)
    ranked = logits.topk(min(5, logits.shape[1])).indices
    hits = ranked == labels[:, None]
    top1, top5 = hits[:, 0], hits.any(1)
    return {"top1": 100 * top1.double().mean().item(), "top5": 100 * top5.double().mean().item()}
