"""Transfer: what a backbone is worth on another data set.

Linear evaluation and fine-tuning on any folder data set (`custom`), on the sets that we train on
and on those of `solo_minent.data.transfer_sets`. Images have the size and the normalisation of
those that the backbone was trained on; results go to the run's folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo_minent.allowed import check_one_of, closest
from solo_minent.config import protocol as protocol_lines
from solo_minent.data.datasets import DATASETS
from solo_minent.data.folders import split_folder
from solo_minent.data.images import FileImages
from solo_minent.data.loaders import image_loader, labelled_images
from solo_minent.data.transfer_known import SPLIT_SEED, TRANSFER_SETS
from solo_minent.data.transfer_sets import (
    RowImages,
    TransferSet,
    draw_each,
    joined,
    transfer_set,
)
from solo_minent.data.transforms import eval_transform, normalization
from solo_minent.errors import UserError
from solo_minent.evaluation import logistic, multilabel
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import EvalLoaders, Target, features_of, with_normalization
from solo_minent.evaluation.training import Outcome
from solo_minent.files import write_text
from solo_minent.schema import RunConfig

MODES = ("linear", "finetune")
HELD_OUT = 0.2  # of each class, where a set has no validation images; ours
METRIC_WORDS = {
    "top1": "top-1",
    "mean_per_class": "mean per-class accuracy",
    "map11": "mean 11-point average precision",
}


def transfer_eval(
    config: RunConfig,
    target: Target,
    dataset: str,
    root: str | Path | None,
    mode: str = "linear",
    protocol: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a target on another data set and stores the result in the run's folder.

    `linear` without a protocol is the field's: frozen features under the test transform (short side
    256 / 224 of the image size, where SimCLR resizes to the size itself), logistic regression
    (`solo_minent.evaluation.logistic`) or for voc2007 linear SVMs (`…multilabel`). Its strength is
    chosen on validation images: the authors', else a fifth of the training images, never the test.

    `linear` with a protocol, and `finetune`, train as `solo-minent linear` and `finetune` do, on
    training and validation images together; voc2007 has neither.

    Args:
        config: of the run; its image size, normalisation, workers, seed and folder are used. For
            `finetune` without a protocol, its `evaluation.finetune`.
        target: what to evaluate.
        dataset: one of `solo_minent.data.datasets.DATASETS` or of `TRANSFER_SETS`.
        root: its folder; digits needs none.
        mode: linear or finetune.
        protocol: a preset of the mode, `solo_minent.config.protocols(mode)`; a configuration that
            has it already keeps what was changed in it.
        progress: show bars.

    Returns:
        The result, in percent: `top1` and `mean_per_class`, or `map11`, and `metric`, the one that
        the field reports; `top1` and `top5` of what trains as `linear` and `finetune`.

    Raises:
        UserError: unknown data set, mode or protocol, data that is missing, damaged or without
            labels, or a mode that the data set does not have.
    """
    check_one_of("mode", mode, MODES)
    known = (*DATASETS, *TRANSFER_SETS)
    if dataset not in known:
        raise UserError(
            f"data set is unknown: {dataset}. They are {', '.join(known)}; custom is a folder of "
            f"your own. Name {closest(str(dataset), known)}."
        )
    config = _with_protocol(config, mode, protocol)
    trains = mode == "finetune" or protocol is not None
    if trains and dataset == "voc2007":
        raise UserError(
            f"voc2007 has several labels an image: mode {mode}, protocol {protocol}. It is "
            "evaluated by linear SVMs. Use mode linear without a protocol."
        )
    check_storable(config)
    if dataset in DATASETS:
        _check_root(dataset, root)
    moved = on_dataset(with_normalization(config, target), dataset, root)
    images = transfer_set(dataset, root) if dataset in TRANSFER_SETS else _own_set(moved)
    evaluate = _trained if trains else _voc2007 if images.metric == "map11" else _logistic
    outcome = evaluate(moved, target, images, mode, progress)
    details = {"mode": mode, **outcome.details, "root": root and str(root)}
    if details.get("unconverged"):
        print(
            f"warning: {details['unconverged']} fits on {dataset} stopped before they converged",
            file=sys.stderr,
        )
    if images.drawn:
        details["split_sha256"] = _record_split(config, dataset, images)
    return store_result(
        config,
        target,
        "transfer",
        f"{outcome.protocol}; {images.split}; {config.data.image_size} px, normalised as "
        f"{'the run' if target.mean is None else 'the target'}",
        outcome.metrics,
        outcome.splits,
        _name(dataset, root),
        **details,
    )


def on_dataset(config: RunConfig, dataset: str, root: str | Path | None) -> RunConfig:
    """The run with the images of another data set, all of them, in its own size and normalisation.

    The folder for results stays that of the run.
    """
    mean, std = normalization(config.data)
    data = replace(
        config.data,
        dataset=dataset,
        root=None if root is None else str(root),
        format="image_folder",
        train_images=None,
        val_images=None,
        file_list=None,
        mean=list(mean),
        std=list(std),
    )
    return replace(config, data=data, folder=str(config.run_dir), devices=1)


def _with_protocol(config: RunConfig, kind: str, name: str | None) -> RunConfig:
    """The configuration with a protocol of the package, unless it has it already."""
    from omegaconf import OmegaConf

    if name is None:
        return config
    lines = [line.removeprefix("evaluation.") for line in protocol_lines(kind, name)]
    if getattr(config.evaluation, kind).name == name:
        return config
    structured = OmegaConf.structured(config.evaluation)
    evaluation = OmegaConf.merge(structured, OmegaConf.from_dotlist(lines))
    return replace(config, evaluation=OmegaConf.to_object(evaluation))


def _check_root(dataset: str, root: str | Path | None) -> None:
    if dataset == "digits" or (root is not None and Path(root).expanduser().is_dir()):
        return
    held = f"what solo-minent prepare {dataset} puts there"
    if dataset == "custom":
        held = "train/<class>/<image> and val/<class>/<image>, or test/"
    raise UserError(
        f"{dataset} needs a folder: {'none is set' if root is None else f'{root} is none'}. It "
        f"holds {held}. Name it: --root <folder>"
    )


def _own_set(config: RunConfig) -> TransferSet:
    """One of `DATASETS` as a transfer set."""
    data = config.data
    train, test = (labelled_images(config, split) for split in ("train", "test"))
    split = "the authors' split"
    if data.dataset == "custom":
        split = f"folders train and {split_folder('custom', data.root, 'test').name}"
    elif data.dataset == "digits":
        split = "80 % of each class for training"
    return TransferSet(train, None, test, "top1", split)


def _logistic(
    config: RunConfig, target: Target, images: TransferSet, mode: str, progress: bool
) -> Outcome:
    data = _features(config, target, images, progress)
    held, chosen_on = data.in_val, "the authors' validation images"
    if images.val is None:
        held = draw_each(data.labels, lambda size: max(1, round(HELD_OUT * size)) * (size > 1))
        chosen_on = f"{HELD_OUT:.0%} of each training class (seed {SPLIT_SEED})"
    if not held.any():
        raise UserError(
            f"too few training images: {config.data.dataset} has one of each class. Some are held "
            "out to choose the L2 strength. Add images, or name a linear protocol."
        )
    parts = (data.train[~held], data.labels[~held], data.train[held], data.labels[held])
    choice = logistic.choose_l2(*parts, images.metric, progress)
    model, converged = logistic.fit_logistic(data.train, data.labels, choice.l2)
    predicted = model.predict(data.test)
    values = logistic.L2_VALUES
    protocol = (
        f"logistic regression on frozen features, {_transform(config)}, L-BFGS, at most "
        f"{logistic.MAX_ITER} iterations, tolerance {logistic.TOLERANCE:g}; L2 strength (1 / C) of "
        f"{len(values)} from {values[0]:g} to {values[-1]:g} by {METRIC_WORDS[images.metric]} on "
        f"{chosen_on}, then trained on all"
    )
    details = {
        "metric": images.metric,
        "l2": choice.l2,
        "l2_at_end_of_range": choice.l2 in (values[0], values[-1]),
        "final_converged": converged,
        "unconverged": choice.unconverged + (not converged),
    }
    metrics = {
        name: 100 * metric(predicted, data.truth) for name, metric in logistic.METRICS.items()
    }
    return Outcome(protocol, metrics, _sizes(data, images), details)


def _voc2007(
    config: RunConfig, target: Target, images: TransferSet, mode: str, progress: bool
) -> Outcome:
    data, classes = _features(config, target, images, progress), images.train.classes
    found = multilabel.svm_scores(
        data.train, data.labels, data.test, classes, config.seed, progress
    )
    mean, each = multilabel.voc07_map(found.scores, data.truth)
    costs = sorted(multilabel.COSTS)
    protocol = (
        f"one linear SVM a class on frozen features of unit length, {_transform(config)}, squared "
        f"hinge, positives weigh {multilabel.POSITIVE_WEIGHT}, at most {multilabel.MAX_ITER} "
        f"iterations, tolerance {multilabel.TOLERANCE:g}; cost of {len(costs)} from {costs[0]:.2g} "
        f"to {costs[-1]:g} by average precision in {multilabel.FOLDS}-fold cross-validation on "
        f"train and val; {METRIC_WORDS['map11']}, difficult images ignored"
    )
    details = {
        "metric": "map11",
        "average_precision": dict(zip(classes, (100 * each).tolist(), strict=True)),
        "costs": dict(zip(classes, found.costs, strict=True)),
        "unconverged": found.unconverged,
    }
    return Outcome(protocol, {"map11": 100 * mean}, _sizes(data, images), details)


def _trained(
    config: RunConfig, target: Target, images: TransferSet, mode: str, progress: bool
) -> Outcome:
    """Linear evaluation or fine-tuning by a protocol."""
    train, test = images.train, images.test
    if images.val is not None:
        train = joined(train, images.val)
    if mode == "linear":
        from solo_minent.evaluation.linear import train_linear

        outcome = train_linear(config, target, (train, test), progress)
    else:
        from solo_minent.evaluation.finetune import train_network

        outcome = train_network(config, target, train, test, progress)
    protocol = outcome.protocol
    if images.val is not None:
        protocol += "; validation images are among the training images"
    if images.metric != "top1":
        protocol += f"; top-1, where the field reports {METRIC_WORDS[images.metric]}"
    return outcome._replace(protocol=protocol, details={"metric": "top1", **outcome.details})


class _Data(NamedTuple):
    """Features float64 (N, D) and labels of training and test images; in_val: bool (N,), which of
    the training images are the authors' validation images."""

    train: np.ndarray
    labels: np.ndarray
    in_val: np.ndarray
    test: np.ndarray
    truth: np.ndarray


def _features(config: RunConfig, target: Target, images: TransferSet, progress: bool) -> _Data:
    """Features under the test transform, by the cache of the run."""
    data = config.data
    train = images.train if images.val is None else joined(images.train, images.val)
    # Rows instead of labels: images that are left out as corrupt shift nothing.
    splits = [
        RowImages(split.paths, split.targets, split.classes)
        if isinstance(split, FileImages)
        else split
        for split in (train, images.test)
    ]
    transform = eval_transform(data.dataset, data.image_size, *normalization(data))
    size = config.evaluation.batch_size
    loaders = EvalLoaders(*(image_loader(config, split, transform, size) for split in splits))
    found = features_of(target, config, progress, loaders)
    in_val = np.zeros(len(found.train), dtype=bool)
    if images.val is not None:
        in_val = found.train_labels.numpy() >= len(images.train)
    labels = [
        split.targets[known] if isinstance(split, RowImages) else known
        for split, known in zip(
            splits, (found.train_labels.numpy(), found.test_labels.numpy()), strict=True
        )
    ]
    train_features, test_features = found.train.double().numpy(), found.test.double().numpy()
    return _Data(train_features, labels[0], in_val, test_features, labels[1])


def _sizes(data: _Data, images: TransferSet) -> dict[str, int]:
    """Images of each split that were used."""
    val = int(data.in_val.sum())
    sizes = {"train": len(data.train) - val, "test": len(data.test)}
    return sizes if images.val is None else {**sizes, "val": val}


def _transform(config: RunConfig) -> str:
    """`eval_transform` and the precision in words."""
    dataset, size = config.data.dataset, config.data.image_size
    if dataset in ("cifar10", "cifar100", "tiny_imagenet", "digits"):
        words = "whole images"
    else:
        short = int(size * (70 / 64 if dataset == "stl10" else 256 / 224))
        words = f"bicubic resize of the short side to {short} and centre crop"
    precision = config.evaluation.precision
    return words if precision == "32" else f"{words}, in {precision}"


def _name(dataset: str, root: str | Path | None) -> str:
    """What the result calls the data set: folders of one's own by their names."""
    if dataset != "custom":
        return dataset
    return f"custom:{Path(root).expanduser().resolve().name}"


def _record_split(config: RunConfig, dataset: str, images: TransferSet) -> str:
    """Writes the names of the training images that were drawn; returns the SHA-256 of the list."""
    paths = [os.fsdecode(path) for path in images.train.paths]
    base = os.path.commonpath(paths)
    text = "".join(f"{os.path.relpath(path, base)}\n" for path in sorted(paths))
    write_text(config.run_dir / "splits" / f"{dataset}-seed{SPLIT_SEED}.txt", text)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
