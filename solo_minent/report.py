"""A run against its baselines, as a table, and its course, as a picture."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from solo_minent import __version__
from solo_minent.checkpoint import add_result, read_results, write_atomic
from solo_minent.config import check_writable
from solo_minent.data.datasets import num_classes
from solo_minent.errors import UserError
from solo_minent.evaluation.knn import few_shot_1nn, knn_accuracy
from solo_minent.evaluation.linear import linear_accuracy
from solo_minent.evaluation.targets import (
    KINDS,
    Features,
    Target,
    check_knn_k,
    eval_loaders,
    features_of,
    load_target,
)
from solo_minent.methods import available
from solo_minent.schema import RunConfig

SHOTS, TRIALS = 5, 20
LABELS = {"pixels": "raw pixels", "random": "untrained backbone", "trained": "trained backbone"}


def report(config: RunConfig) -> Path:
    """Evaluates a run against raw pixels and the untrained backbone; prints, stores and plots.

    Args:
        config: of a finished run.

    Returns:
        The picture, `report.png` in the run folder.

    Raises:
        UserError: the run is not finished, a file of it is damaged, or its data is missing.
    """
    # What can be wrong is found before the slow part.
    load_target(config)
    _read_log(config)
    check_writable(config)
    read_results(config.run_dir)
    loaders = eval_loaders(config)
    check_knn_k(config, len(loaders[0].dataset))
    rarest = np.unique(loaders[0].dataset.images.targets, return_counts=True)[1].min()
    table = Table(title=f"{config.method} on {config.data.dataset}, held-out accuracy in %")
    table.add_column("features")
    for column in ("linear", f"{config.evaluation.knn_k}-NN", f"1-NN, {SHOTS} labels a class"):
        table.add_column(column, justify="right")
    for kind in reversed(KINDS):
        target = load_target(config, kind)
        features = features_of(target, config, loaders=loaders)
        linear = linear_result(config, target, features)
        knn = knn_result(config, target, features, config.evaluation.knn_k)
        spread = "-"
        if rarest >= SHOTS:
            few = few_shot_result(config, target, features)
            spread = f"{few['top1']:.1f} ± {few['std']:.1f}"
        table.add_row(LABELS[kind], f"{linear['top1']:.1f}", f"{knn['top1']:.1f}", spread)
    if rarest < SHOTS:
        table.caption = f"-: a class has {rarest} training images of {SHOTS}, see data.train_images"
    Console().print(table)
    return plot(config)


def linear_result(config: RunConfig, target: Target, features: Features) -> dict[str, Any]:
    """Linear evaluation of a target, stored in the run's results."""
    probe = config.evaluation.linear
    classes = num_classes(config.data.dataset, config.data.root, config.data.format)
    protocol = (
        f"linear, cached features, Adam lr {probe.lr:g} to {probe.final_lr:g}, weight decay "
        f"{probe.weight_decay:g}, batch {probe.batch_size}, {probe.max_epochs} epochs, last epoch"
    )
    accuracy = linear_accuracy(features, classes, probe, config.seed)
    return _store(config, target, features, protocol, accuracy)


def knn_result(
    config: RunConfig,
    target: Target,
    features: Features,
    k: int,
    temperature: float | None = None,
    distance: str = "euclidean",
) -> dict[str, Any]:
    """kNN accuracy of a target, stored in the run's results."""
    vote = "majority vote" if temperature is None else f"weights exp(sim / {temperature:g})"
    share = knn_accuracy(*features, k, temperature, distance)
    return _store(config, target, features, f"{k}-NN, {distance}, {vote}", {"top1": 100 * share})


def few_shot_result(config: RunConfig, target: Target, features: Features) -> dict[str, Any]:
    """1-NN with a few labels a class, mean and deviation over seeded draws, stored likewise."""
    mean, std = few_shot_1nn(*features, SHOTS, TRIALS, config.seed)
    protocol = f"1-NN, cosine, {SHOTS} labels a class, mean and deviation of {TRIALS} draws"
    return _store(config, target, features, protocol, {"top1": 100 * mean, "std": 100 * std})


def _store(
    config: RunConfig,
    target: Target,
    features: Features,
    protocol: str,
    metrics: dict[str, float],
) -> dict[str, Any]:
    result = {
        "target": target.kind,
        "protocol": protocol,
        **metrics,
        "dataset": config.data.dataset,
        "train_images": len(features.train),
        "test_images": len(features.test),
        "seed": config.seed,
        "weights": target.origin,
        "checkpoint_sha256": target.checkpoint_sha256,
        "versions": {"solo_minent": __version__, "torch": version("torch")},
    }
    add_result(config.run_dir, result)
    return result


def plot(config: RunConfig) -> Path:
    """Loss, the method's own terms and kNN accuracy over the epochs of a run.

    Args:
        config: of a run that has written its log.

    Returns:
        `report.png` in the run folder.

    Raises:
        UserError: there is no log, or it is damaged.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    log = _read_log(config)
    prefix = f"train_{config.method}_"
    monitors = available()[config.method].monitors
    panels = [
        (f"{config.method} loss", [f"{prefix}loss"]),
        (", ".join(monitors).replace("_", " "), [f"{prefix}{term}" for term in monitors]),
        ("held-out accuracy, %", ["knn_acc1", "val_acc1"]),
    ]
    names = {"knn_acc1": f"{config.evaluation.knn_k}-NN", "val_acc1": "online linear"}
    with plt.style.context("ggplot"):
        figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.6), layout="constrained")
        for axis, (title, columns) in zip(axes, panels, strict=True):
            for column in columns:
                if column in log:
                    shown = log[["epoch", column]].dropna()
                    label = names.get(column, column.removeprefix(prefix).replace("_", " "))
                    axis.plot(shown["epoch"], shown[column], label=label, linewidth=2)
            axis.set(title=title, xlabel="epoch")
            if len(axis.lines) > 1:
                axis.legend()
        figure.suptitle(f"{config.method} on {config.data.dataset}, run {config.name}")
        path = config.run_dir / "report.png"
        write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    plt.close(figure)
    return path


def _read_log(config: RunConfig) -> pd.DataFrame:
    path = config.run_dir / "log.csv"
    if not path.is_file():
        raise UserError(
            f"log is missing: {path}. A run writes it after its first epoch. "
            "Start the run with solo-minent pretrain."
        )
    try:
        log = pd.read_csv(path)
        wrong = "no epochs" if log.empty or "epoch" not in log else ""
        if not wrong and len(log.select_dtypes("number").columns) < len(log.columns):
            wrong = "not all values are numbers"
    except ValueError as error:  # pandas' own errors and those of the encoding are its subclasses
        wrong = " ".join(str(error).split())
    if wrong:
        raise UserError(
            f"log is damaged: {path} ({wrong}). A table of numbers, one row an epoch, was "
            "expected. Restore the file, or train the run again in an empty folder."
        )
    return log
