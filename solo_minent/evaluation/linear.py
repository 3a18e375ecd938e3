"""Linear evaluation: solo-learn's LinearModel on a frozen backbone.

Protocols without augmentation train on features that are computed once; the others send every
image through the backbone in every epoch. Several learning rates are trained in one pass, and the
one that counts is chosen on training images that were held out, never on the test set.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from solo_minent import host
from solo_minent.checks import check_training
from solo_minent.data.datasets import stratified_indices
from solo_minent.data.loaders import image_loader, labelled_images
from solo_minent.errors import UserError
from solo_minent.evaluation import protocols, training
from solo_minent.evaluation.blocks import LastBlocks
from solo_minent.evaluation.features import (
    computing,
    device_of,
    extract_features,
    resolve_precision,
)
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import (
    EvalLoaders,
    Features,
    Target,
    features_of,
    with_normalization,
)
from solo_minent.evaluation.training import Outcome
from solo_minent.schema import LinearConfig

if TYPE_CHECKING:
    from solo_minent.data.images import ImageSet
    from solo_minent.schema import RunConfig

KEY = "evaluation.linear"


class Frozen(nn.Module):
    """A backbone that stays in eval mode, without gradients, in a precision of its own.

    (B, 3, H, W) -> float32 (B, num_features).
    """

    def __init__(self, backbone: nn.Module, precision: str) -> None:
        super().__init__()
        self.backbone, self.precision = backbone.eval(), precision
        convolutional = any(isinstance(m, nn.Conv2d) for m in backbone.modules())
        self.format = torch.channels_last if convolutional else torch.contiguous_format
        self.num_features = backbone.num_features

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        name = resolve_precision(self.precision, images.device)
        with torch.no_grad(), computing(name, images.device):
            return self.backbone(images.to(memory_format=self.format)).float()


def linear_eval(config: RunConfig, target: Target, progress: bool = True) -> dict[str, Any]:
    """Linear evaluation by the protocol `config.evaluation.linear`, stored in the run's results.

    The last epoch counts, never the best one on the test set.

    Args:
        config: of the run.
        target: what is evaluated.
        progress: show a bar.

    Returns:
        The result: `top1` and `top5` in percent, the protocol, the splits; with
        `evaluation.linear.sweep` also `lr` and, of every rate, `sweep`.

    Raises:
        UserError: data, labels, batch size or backbone do not suit the protocol.
    """
    check_storable(config)
    outcome = train_linear(config, target, progress=progress)
    return store_result(
        config,
        target,
        "linear",
        outcome.protocol,
        outcome.metrics,
        outcome.splits,
        **outcome.details,
    )


def train_linear(
    config: RunConfig,
    target: Target,
    images: tuple[ImageSet, ImageSet] | None = None,
    progress: bool = True,
) -> Outcome:
    """What `linear_eval` stores, on any labelled training and test images.

    Args:
        config: its protocol, image size, normalisation, workers and seed are used.
        target: what is evaluated.
        images: training and test images; None: those of the run.
        progress: show a bar.

    Raises:
        UserError: as `linear_eval`.
    """
    settings = config.evaluation.linear
    check_training(KEY, settings)
    train, test = images or (labelled_images(config, "train"), labelled_images(config, "test"))
    training.check_labels(train.targets, test.targets, len(train.classes))
    kept = _part(train.targets, settings, config.seed)[0]
    if settings.augment or settings.scale_lr:
        training.check_batch(f"{KEY}.batch_size", settings.batch_size, len(kept))
    if settings.blocks:
        LastBlocks(target.backbone, settings.blocks)  # says whether it has them
    # One process with all of the workers, on images normalised as the target expects.
    config = with_normalization(replace(config, devices=1), target)
    if settings.augment:
        return _augmented(config, target, train, test, progress)
    features = _features(config, target, train, test, progress)
    return linear_on_features(config, features, len(train.classes), progress)


def linear_on_features(
    config: RunConfig, features: Features, num_classes: int, progress: bool = True
) -> Outcome:
    """What `linear_eval` stores, on features that are at hand.

    Args:
        config: its protocol, one without augmentation, and its seed are used.
        features: of both splits, as the protocol computes them.
        num_classes: C; labels are 0 … C - 1.
        progress: show a bar.

    Raises:
        UserError: as `linear_accuracy`.
    """
    settings = config.evaluation.linear
    _check_features(settings, features, num_classes)
    metrics, sweep = _on_features(
        features, num_classes, settings, config.seed, progress, config.accelerator
    )
    return _outcome(config, len(features.train), len(features.test), metrics, sweep)


def linear_accuracy(
    features: Features,
    num_classes: int,
    config: LinearConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    accelerator: str = "auto",
) -> dict[str, float]:
    """Trains a linear classifier on frozen features; the last epoch counts, not the best.

    Args:
        features: of both splits.
        num_classes: C; labels are 0 … C - 1.
        config: the protocol, one without augmentation.
        seed: of the initialisation and the batch order.
        progress: show a bar.
        accelerator: Lightning's.

    Returns:
        `top1`, `top5` (top C below five classes) and `train_top1`, in percent; of the rate that
        the held-out part chose, if there are several.

    Raises:
        UserError: unlabelled images, labels beyond C, or a protocol with augmentation.
    """
    settings = config or LinearConfig()
    _check_features(settings, features, num_classes)
    return _on_features(features, num_classes, settings, seed, progress, accelerator)[0]


def _check_features(settings: LinearConfig, features: Features, num_classes: int) -> None:
    check_training(KEY, settings)
    if settings.augment:
        raise UserError(
            f"protocol trains on augmented images: {settings.name}. Features that were computed "
            f"once have none. Set {KEY}.augment=false, or run solo-minent linear."
        )
    training.check_labels(features.train_labels, features.test_labels, num_classes)


Sweep = list[dict[str, float]]


def _on_features(
    features: Features,
    classes: int,
    settings: LinearConfig,
    seed: int,
    progress: bool,
    accelerator: str,
) -> tuple[dict[str, float], Sweep]:
    """Metrics of the rate that counts, and those of every rate if there are several."""
    kept, held = _part(features.train_labels.numpy(), settings, seed)
    train, labels = features.train, features.train_labels
    if held is not None:
        train, labels = train[kept], labels[kept]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        frozen = nn.Identity()
        frozen.num_features = train.shape[1]
        batches = training.ShuffledBatches(len(train), settings.batch_size, seed)
        loader = DataLoader(TensorDataset(train, labels), sampler=batches, batch_size=None)
        heads = _fit(frozen, loader, classes, settings, len(train), accelerator, progress)
    test = training.accuracies_of_all(heads, features.test, features.test_labels)
    if held is None:
        train_top1 = training.accuracies(heads[0], train, labels)["top1"]
        return {**test[0], "train_top1": train_top1}, []
    chosen_on = (features.train[held], features.train_labels[held])
    held_out = training.accuracies_of_all(heads, *chosen_on)
    sweep = _sweep(settings, len(train), held_out, test)
    best = _best(sweep)
    train_top1 = training.accuracies(heads[best], train, labels)["top1"]
    return {**test[best], "train_top1": train_top1}, sweep


def _augmented(
    config: RunConfig, target: Target, train: ImageSet, test: ImageSet, progress: bool
) -> Outcome:
    settings, seed = config.evaluation.linear, config.seed
    kept, held = _part(train.targets, settings, seed)
    shown = train if held is None else train.select(kept)
    central = training.central_view(settings, config.data)
    size, device = config.evaluation.batch_size, device_of(config)
    with torch.random.fork_rng(), training.untouched(target.backbone):
        torch.manual_seed(seed)
        frozen = _frozen(config, target.backbone)
        batches = training.ShuffledBatches(len(shown), settings.batch_size, seed)
        view = training.random_view(settings, config.data)
        loader = image_loader(config, shown, view, 1, batch_sampler=batches)
        classes = len(train.classes)
        heads = _fit(frozen, loader, classes, settings, len(shown), config.accelerator, progress)

        def measured(images: ImageSet) -> list[dict[str, float]]:
            loader = image_loader(config, images, central, size)
            features, labels = extract_features(frozen, loader, device, progress=progress)
            return training.accuracies_of_all(heads, features, labels)

        tested = measured(test)
        if held is None:
            return _outcome(config, len(train), len(test), tested[0], [])
        sweep = _sweep(settings, len(shown), measured(train.select(held)), tested)
    return _outcome(config, len(train), len(test), tested[_best(sweep)], sweep)


def _fit(
    backbone: nn.Module,
    loader: Any,
    classes: int,
    settings: LinearConfig,
    images: int,
    accelerator: str,
    progress: bool,
) -> nn.ModuleList:
    """The trained head of every rate; all of them start as the same head."""
    first = training.make_head(settings, backbone.num_features, classes)
    rates = _rates(settings, images)
    heads = training.Heads([first, *(copy.deepcopy(first) for _ in rates[1:])])

    def make_optimizer(classifier: nn.Module) -> torch.optim.Optimizer:
        pairs = zip(classifier.heads, rates, strict=True)
        groups = [{"params": list(head.parameters()), "lr": lr} for head, lr in pairs]
        return training.make_optimizer(settings, groups)

    module = host.linear_probe(
        backbone,
        host.LinearConfig(classes, settings.max_epochs, settings.batch_size, scheduler="none"),
        heads,
        make_optimizer,
    )
    # Every rate falls in the same proportion.
    fall = settings.final_lr / settings.lr
    schedules = [training.epoch_lr(settings, lr, fall * lr) for lr in rates]
    training.fit(
        module,
        loader,
        settings.max_epochs,
        schedules,
        accelerator,
        title="linear evaluation",
        progress=progress,
    )
    return heads.heads


def _frozen(config: RunConfig, backbone: nn.Module) -> Frozen:
    blocks, precision = config.evaluation.linear.blocks, config.evaluation.precision
    return Frozen(LastBlocks(backbone, blocks) if blocks else backbone, precision)


def _features(
    config: RunConfig, target: Target, train: ImageSet, test: ImageSet, progress: bool
) -> Features:
    """Features of both splits; kept for other evaluations if the transform is theirs."""
    settings, size = config.evaluation.linear, config.evaluation.batch_size
    view = training.central_view(settings, config.data)
    loaders = EvalLoaders(*(image_loader(config, images, view, size) for images in (train, test)))
    given = loaders if settings.resize is None else tuple(loaders)
    return features_of(target, config, progress, given, settings.blocks)


def _part(targets: np.ndarray, settings: LinearConfig, seed: int) -> tuple[np.ndarray, Any]:
    """Rows to train on, and rows held out to choose a rate; None where there is one rate."""
    everything = np.arange(len(targets))
    if len(_rates(settings, 1)) == 1:
        return everything, None
    count = max(1, round(settings.sweep_part * len(targets)))
    held = stratified_indices(targets, count, seed, "the training set")
    return np.setdiff1d(everything, held), held


def _scale(settings: LinearConfig, images: int) -> float:
    """What a rate is multiplied by; a batch is never larger than the set."""
    return min(settings.batch_size, images) / 256 if settings.scale_lr else 1.0


def _rates(settings: LinearConfig, images: int) -> list[float]:
    """Absolute learning rates, the protocol's own first, each once."""
    scale = _scale(settings, images)
    return [lr * scale for lr in dict.fromkeys([settings.lr, *settings.sweep])]


def _sweep(
    settings: LinearConfig,
    images: int,
    held_out: list[dict[str, float]],
    test: list[dict[str, float]],
) -> Sweep:
    """The table of all rates; none of a single one."""
    rows = zip(_rates(settings, images), held_out, test, strict=True)
    return [{"lr": lr, "held_out_top1": held["top1"], **tested} for lr, held, tested in rows]


def _best(sweep: Sweep) -> int:
    """The rate with the best held-out top-1, the first of equal ones."""
    return max(range(len(sweep)), key=lambda row: sweep[row]["held_out_top1"])


def _outcome(
    config: RunConfig, train: int, test: int, metrics: dict[str, float], sweep: Sweep
) -> Outcome:
    """Protocol and splits in words; `train` counts the images with those held out."""
    settings = config.evaluation.linear
    held = max(1, round(settings.sweep_part * train)) if sweep else 0
    images = train - held
    rates = ", ".join(f"{lr:g}" for lr in _rates(settings, images))
    words = f"lr one of {rates}" if sweep else f"lr {rates}"
    if settings.scale_lr:
        words += f" ({settings.lr:g} per 256 images)"
    final_lr = settings.final_lr * _scale(settings, images)
    words = protocols.describe_rate(settings, words, final_lr, settings.gamma)
    if sweep and settings.scheduler != "step":
        words += " for the first, in proportion for the others"
    parts = [f"linear, {protocols.name_of('linear', settings)}"]
    parts.append(protocols.describe_images(settings, settings.augment))
    if settings.blocks:
        parts.append(f"class tokens of the last {settings.blocks} blocks")
    if config.evaluation.precision != "32":
        parts.append(f"backbone in {config.evaluation.precision}")
    batch = min(settings.batch_size, images)
    parts += protocols.describe_training(settings, batch, words)
    splits, details = {"train": images, "test": test}, {}
    if sweep:
        splits["held_out"] = held
        details = {"lr": sweep[_best(sweep)]["lr"], "sweep": sweep}
        parts.append(
            f"rate chosen on {settings.sweep_part:g} of the training images, held out "
            f"(seed {config.seed})"
        )
    return Outcome("; ".join(parts), metrics, splits, details)
