"""Fine-tuning of a whole network on few labels (semi-supervised evaluation) or on all of them.

The images with labels are those of a list (`data.file_list`, as SimCLR published them for
ImageNet), or a stratified draw that the run's seed decides and the run folder records.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from solo_minent.allowed import Range, check_range
from solo_minent.checks import check_training
from solo_minent.data.datasets import stratified_indices
from solo_minent.data.loaders import image_loader, labelled_images
from solo_minent.errors import UserError
from solo_minent.evaluation import protocols, training
from solo_minent.evaluation.features import device_of, extract_features, resolve_precision
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import Target, with_normalization
from solo_minent.evaluation.training import Outcome
from solo_minent.files import sha256, write_text

if TYPE_CHECKING:
    from solo_minent.data.images import ImageSet
    from solo_minent.schema import FinetuneConfig, RunConfig

KEY = "evaluation.finetune"
PERCENT = Range(0, 1, high=100, above=True)
LIST_TOLERANCE = 0.1  # of the images that a draw would have; SimCLR's lists have one less


class Network(pl.LightningModule):
    """Backbone and linear layer, trained together at two rates.

    solo-learn's LinearModel fine-tunes in its newer version alone, and at one rate.

    Args:
        backbone: images (B, 3, H, W) -> (B, num_features).
        head: (B, num_features) -> logits (B, C).
        settings: of the optimiser and the precision.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, settings: FinetuneConfig) -> None:
        super().__init__()
        self.backbone, self.head, self.settings = backbone, head, settings

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        features = self.backbone(images)
        with torch.autocast(self.device.type, enabled=False):
            return F.cross_entropy(self.head(features.float()), targets)

    def configure_optimizers(self) -> Optimizer:
        groups = [
            {"params": list(self.head.parameters()), "lr": self.settings.lr},
            {"params": list(self.backbone.parameters()), "lr": self.settings.backbone_lr},
        ]
        return training.make_optimizer(self.settings, groups)


def finetune_eval(
    config: RunConfig, target: Target, percent: float = 100, progress: bool = True
) -> dict[str, Any]:
    """Fine-tuning by the protocol `config.evaluation.finetune`, stored in the run's results.

    The last epoch counts, never the best one on the test set. The target itself is not changed.

    Args:
        config: of the run; with `data.file_list` the images of that list are trained on.
        target: what is evaluated.
        percent: of the training images, all of them at 100; the names of a draw are written to
            `splits/<dataset>-<percent>-seed<seed>.txt` in the run folder.
        progress: show a bar.

    Returns:
        The result: `top1` and `top5` in percent, the protocol, the splits and where the list is.

    Raises:
        UserError: data, labels, percent, batch size or backbone do not suit the protocol.
    """
    check_storable(config)
    check_range("percent", percent, PERCENT)
    train, chosen_by, record = _labelled_part(config, percent)
    test = labelled_images(config, "test")
    outcome = train_network(config, target, train, test, progress, chosen_by)
    return store_result(
        config,
        target,
        "finetune",
        outcome.protocol,
        outcome.metrics,
        outcome.splits,
        percent=percent,
        **outcome.details,
        **record(),
    )


def train_network(
    config: RunConfig,
    target: Target,
    train: ImageSet,
    test: ImageSet,
    progress: bool = True,
    chosen_by: str = "all labels",
) -> Outcome:
    """What `finetune_eval` stores, on any labelled training and test images.

    Args:
        config: its protocol, image size, normalisation, workers and seed are used.
        target: what is evaluated; a copy of its backbone is trained.
        train: training images.
        test: test images.
        progress: show a bar.
        chosen_by: where the training images come from, for the protocol.

    Raises:
        UserError: as `finetune_eval`.
    """
    settings, seed = config.evaluation.finetune, config.seed
    check_training(KEY, settings)
    if not any(p.requires_grad for p in target.backbone.parameters()):
        raise UserError(
            f"target has no weights to train: {target.kind}. Fine-tuning trains a network. "
            "Evaluate a backbone, or use solo-minent linear."
        )
    training.check_labels(train.targets, test.targets, len(train.classes))
    training.check_batch(f"{KEY}.batch_size", settings.batch_size, len(train))
    device = device_of(config)
    precision = resolve_precision(settings.precision, device)
    if precision == "16-mixed" and device == "cpu":
        raise UserError(
            f"{KEY}.precision is not for the CPU: {precision}. Half precision is trained on a GPU. "
            f"Set {KEY}.precision=32."
        )
    # One process with all of the workers, on images normalised as the target expects.
    config = with_normalization(replace(config, devices=1), target)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = copy.deepcopy(target.backbone).train()
        convolutional = any(isinstance(m, nn.Conv2d) for m in backbone.modules())
        if config.channels_last and convolutional:
            backbone.to(memory_format=torch.channels_last)
        head = training.make_head(settings, backbone.num_features, len(train.classes))
        batches = training.ShuffledBatches(len(train), settings.batch_size, seed)
        view = training.random_view(settings, config.data)
        loader = image_loader(config, train, view, 1, batch_sampler=batches)
        schedules = [
            training.epoch_lr(settings, settings.lr),
            training.epoch_lr(settings, settings.backbone_lr, gamma=settings.backbone_gamma),
        ]
        training.fit(
            Network(backbone, head, settings),
            loader,
            settings.max_epochs,
            schedules,
            config.accelerator,
            precision,
            "fine-tuning",
            progress,
        )
    central = training.central_view(settings, config.data)
    loader = image_loader(config, test, central, config.evaluation.batch_size)
    features, labels = extract_features(backbone, loader, device, precision, progress)
    metrics = training.accuracies(head, features, labels)
    splits = {"train": len(train), "test": len(test)}
    return Outcome(_protocol(settings, chosen_by), metrics, splits, {})


def labelled_indices(targets: np.ndarray, percent: float, seed: int) -> np.ndarray:
    """Sorted indices of a seeded, stratified share of images, at least one of each class.

    Args:
        targets: labels (N,), integers.
        percent: of the images, 0 to 100.
        seed: of the draw.
    """
    count = max(1, round(len(targets) * percent / 100))
    chosen = stratified_indices(targets, count, seed, "the training set")
    left_out = np.setdiff1d(targets, targets[chosen])
    rng = np.random.RandomState(seed)  # its stream is frozen by NumPy's policy
    extra = [rng.choice(np.flatnonzero(targets == label)) for label in left_out]
    return np.sort(np.concatenate([chosen, np.array(extra, dtype=chosen.dtype)]))


Record = Callable[[], dict[str, Any]]


def _labelled_part(config: RunConfig, percent: float) -> tuple[ImageSet, str, Record]:
    """Images to train on, how they were chosen, and what writes that down and says where."""
    images = labelled_images(config, "train")
    if config.data.file_list is not None:
        chosen_by, details = _listed(config, images, percent)
        return images, chosen_by, lambda: details
    if percent == 100:
        return images, "all labels", dict
    indices = labelled_indices(images.targets, percent, config.seed)
    path = config.run_dir / "splits" / f"{config.data.dataset}-{percent:g}-seed{config.seed}.txt"
    part = images.select(indices)
    title = f"{percent:g} % of {len(images)} images, seed {config.seed}"

    def record() -> dict[str, Any]:
        _write_split(path, part, indices, title)
        return {"split_file": str(path), "split_sha256": sha256(path)}

    return part, f"{percent:g} % of the labels, stratified draw of seed {config.seed}", record


def _listed(config: RunConfig, images: ImageSet, percent: float) -> tuple[str, dict[str, Any]]:
    """How the images of a list are described, once they are as many as was said."""
    path = Path(config.data.file_list).expanduser()
    if percent != 100:
        whole = replace(config, data=replace(config.data, file_list=None, train_images=None))
        targets = labelled_images(whole, "train").targets
        expected = len(labelled_indices(targets, percent, config.seed))
        if abs(len(images) - expected) > LIST_TOLERANCE * expected:
            share = 100 * len(images) / len(targets)
            raise UserError(
                f"file list holds another share of the training images: {share:.3g} % in {path}, "
                f"{percent:g} % were asked for. A list is used whole. Name the list of "
                f"{percent:g} %, or set data.file_list=null for a draw of the run's seed."
            )
    details = {"split_file": str(path), "split_sha256": sha256(path)}
    return f"the {len(images)} images of {path.name}", details


def _write_split(path: Path, part: ImageSet, indices: np.ndarray, title: str) -> None:
    """One image a line: `<class>/<file>`, as data.file_list reads it, or its index."""
    if part.has_files:
        names = zip(part.targets.tolist(), part.file_names(), strict=True)
        lines = [f"{part.classes[target]}/{file}" for target, file in names]
    else:
        lines = [str(index) for index in indices.tolist()]
    write_text(path, "\n".join([f"# {title}", *lines]) + "\n")


def _protocol(settings: FinetuneConfig, chosen_by: str) -> str:
    head = protocols.describe_rate(settings, f"lr {settings.lr:g}", 0.0, settings.gamma)
    backbone = protocols.describe_rate(
        settings, f"of the backbone {settings.backbone_lr:g}", 0.0, settings.backbone_gamma
    )
    parts = [f"fine-tuning, {protocols.name_of('finetune', settings)}", chosen_by]
    parts.append(protocols.describe_images(settings))
    if settings.precision != "32":
        parts.append(f"backbone in {settings.precision}")
    rates = f"{head}, {backbone}"
    parts += protocols.describe_training(settings, settings.batch_size, rates)
    return "; ".join(parts)
