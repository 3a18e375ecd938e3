"""The trained backbone against the untrained one and raw pixels, under three protocols."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from solo_minent.config import check_writable
from solo_minent.evaluation.knn import few_shot_eval, knn_eval
from solo_minent.evaluation.knn.command import SHOTS
from solo_minent.evaluation.linear import linear_eval
from solo_minent.evaluation.targets import check_knn_k, eval_loaders, features_of, load_target
from solo_minent.schema import RunConfig

LABELS = {"pixels": "raw pixels", "random": "untrained backbone", "trained": "trained backbone"}
LARGEST_PIXELS = 64  # side of an image whose pixels are still features


def check_evaluation(config: RunConfig) -> None:
    """Finds what is wrong before the slow part.

    Raises:
        UserError: the run is not finished, its folder cannot be written, or its data is missing.
    """
    load_target(config)
    check_writable(config)
    loaders = eval_loaders(config)
    check_knn_k(config, len(loaders[0].dataset))


def evaluate_baselines(config: RunConfig, progress: bool = True) -> list[str]:
    """Linear, kNN and few-shot accuracy of a run and its baselines: stored, and printed as a table.

    Args:
        config: of a finished run.
        progress: show bars.

    Returns:
        What was left out, and why.

    Raises:
        UserError: as `check_evaluation`.
    """
    loaders = eval_loaders(config)
    rarest = np.unique(loaders[0].dataset.images.targets, return_counts=True)[1].min()
    left_out, caption = [], []
    table = Table(title=f"{config.method} on {config.data.dataset}, held-out accuracy in %")
    table.add_column("features")
    for column in ("linear", f"{config.evaluation.knn_k}-NN", f"1-NN, {SHOTS} labels a class"):
        table.add_column(column, justify="right")
    for kind, label in LABELS.items():
        if kind == "pixels" and config.data.image_size > LARGEST_PIXELS:
            side = config.data.image_size
            left_out.append(f"raw pixels: {3 * side**2:,} features an image of {side} px")
            caption.append(f"without {left_out[-1]}")
            continue
        target = load_target(config, kind)
        features = features_of(target, config, progress, loaders=loaders)
        linear = linear_eval(config, target, progress)
        (knn,) = knn_eval(config, target, [config.evaluation.knn_k], features=features)
        spread = "-"
        if rarest >= SHOTS:
            few = few_shot_eval(config, target, features=features)
            spread = f"{few['top1']:.1f} ± {few['std']:.1f}"
        table.add_row(label, f"{linear['top1']:.1f}", f"{knn['top1']:.1f}", spread)
    if rarest < SHOTS:
        why = f"a class has {rarest} training images of {SHOTS}, see data.train_images"
        left_out.append(f"1-NN, {SHOTS} labels a class: {why}")
        caption.append(f"-: {why}")
    table.caption = "; ".join(caption)
    Console().print(table)
    return left_out
