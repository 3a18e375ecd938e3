"""kNN of a run: features once, the whole grid from one search, each setting a stored result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from solo_minent.evaluation.knn.classify import accuracy, few_shot_1nn, knn_grid
from solo_minent.evaluation.knn.inputs import check_grid
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import (
    Features,
    Target,
    check_knn_k,
    eval_loaders,
    features_of,
)
from solo_minent.schema import RunConfig

SHOTS, TRIALS = 5, 20


def knn_eval(
    config: RunConfig,
    target: Target,
    ks: Sequence[int],
    temperatures: Sequence[float | None] = (None,),
    distances: Sequence[str] = ("euclidean",),
    progress: bool = True,
    features: Features | None = None,
) -> list[dict[str, Any]]:
    """kNN accuracy of a target for each (k, temperature, distance), stored in the run's results.

    Args:
        config: of the run; names the data.
        target: what to evaluate.
        ks: numbers of neighbours.
        temperatures: of votes exp(similarity / temperature); None for one vote each.
        distances: cosine or euclidean.
        progress: show a bar while features are computed.
        features: of the target, if they are at hand.

    Returns:
        The results, distance by distance, then k by k, then temperature by temperature.

    Raises:
        UserError: a setting is not allowed, such as a k above the size of the training set, or the
            data is missing; before any features are computed.
    """
    check_storable(config)
    loaders = None if features is not None else eval_loaders(config)
    images = len(features.train) if loaders is None else len(loaders[0].dataset)
    key = "evaluation.knn_k" if list(ks) == [config.evaluation.knn_k] else "--k"
    for k in ks:
        checked = replace(config, evaluation=replace(config.evaluation, knn_k=k))
        check_knn_k(checked, images, key)
    check_grid(ks, temperatures, distances, images)
    features = features or features_of(target, config, progress, loaders)
    train, labels, test, truth = features
    results = []
    grid = knn_grid(train, labels, test, ks, temperatures, distances)
    for (k, temperature, distance), predicted in grid.items():
        vote = "majority vote" if temperature is None else f"weights exp(sim / {temperature:g})"
        protocol = f"{k}-NN, {distance}, {vote}"
        metrics = {"top1": 100 * accuracy(predicted, truth)}
        splits = {"train": len(train), "test": len(test)}
        results.append(store_result(config, target, "knn", protocol, metrics, splits))
    return results


def few_shot_eval(
    config: RunConfig, target: Target, progress: bool = True, features: Features | None = None
) -> dict[str, Any]:
    """1-NN with 5 labels a class, cosine: mean and deviation over 20 seeded draws, stored likewise.

    Args:
        config: of the run; its seed draws the labels.
        target: what to evaluate.
        progress: show a bar while features are computed.
        features: of the target, if they are at hand.

    Raises:
        UserError: a class has fewer than 5 training images, or the data is missing.
    """
    features = features or features_of(target, config, progress)
    mean, std = few_shot_1nn(*features, SHOTS, TRIALS, config.seed)
    protocol = f"1-NN, cosine, {SHOTS} labels a class, mean and deviation of {TRIALS} draws"
    metrics = {"top1": 100 * mean, "std": 100 * std}
    splits = {"train": len(features.train), "test": len(features.test)}
    return store_result(config, target, "few_shot", protocol, metrics, splits)
