"""Clusters against classes: a run's own predicted classes, or k-means on features.

The measures are those of TWIST's unsupervised classification (arXiv 2110.07402, section 4):
scikit-learn's NMI, AMI, ARI and Fowlkes-Mallows index, and the accuracy after the best one-to-one
matching of clusters and classes (Hungarian); purity is the accuracy after a many-to-one matching.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from solo_minent.allowed import Range, check_one_of, check_range
from solo_minent.data.loaders import EvalLoader, eval_loader
from solo_minent.errors import UserError
from solo_minent.evaluation import predictions
from solo_minent.evaluation.features import device_of, extract_features
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import Target, with_normalization

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

    from solo_minent.schema import RunConfig

SPLITS = ("train", "test")
# Which network of a run a target is.
WHICH = {"trained": "student", "teacher": "teacher"}
STARTS = 10
LARGE = 20_000  # images from which on k-means sees mini-batches
BATCH = 4096


class Clustering(NamedTuple):
    """A clustering of the images of a split, with their labels, and where it came from."""

    target: Target
    protocol: str
    clusters: np.ndarray
    ranked: np.ndarray | None
    truth: Tensor
    details: dict[str, Any]


def cluster_eval(
    config: RunConfig, target: Target, split: str = "test", clusters: int | None = None
) -> list[dict[str, Any]]:
    """Compares clusters with the labels of a split; stores and returns one result a clustering.

    The targets `trained` and `teacher` of a method that predicts classes (TWIST, MinEnt) are
    evaluated by these: each head of the run's last checkpoint. Every other target, and these two
    where `clusters` is given, by k-means on the features of the split.

    Args:
        config: of the run.
        target: what to evaluate.
        split: `train` or `test`, under the test transform.
        clusters: of k-means; by default the number of classes, if the method predicts none.

    Raises:
        UserError: clusters outside 2 … images of the split, another split, data that is missing or
            has no labels, a checkpoint that is missing, damaged or of another architecture.
    """
    check_one_of("--split", split, SPLITS)
    check_storable(config)
    alone = with_normalization(replace(config, devices=1), target)
    loader = eval_loader(alone, split, config.evaluation.batch_size)
    if clusters is None and target.kind in WHICH and config.method in predictions.METHODS:
        found = _predicted(config, target, loader)
    else:
        images = loader.dataset.images
        count = len(images.classes) if clusters is None else clusters
        fix = min(max(len(images.classes), 2), len(images))
        check_range("--clusters", count, Range(2, fix, high=len(images)))
        found = [_kmeans_of(config, target, loader, count)]
    results = []
    for clustering in found:
        metrics = cluster_metrics(clustering.clusters, clustering.truth, clustering.ranked)
        result = store_result(
            config,
            clustering.target,
            "cluster",
            f"{clustering.protocol}, accuracy by Hungarian matching, {split} split",
            metrics,
            {split: len(clustering.truth)},
            **clustering.details,
        )
        results.append(result)
    return results


def cluster_metrics(
    predicted: ArrayLike | Tensor,
    truth: ArrayLike | Tensor,
    ranked: ArrayLike | Tensor | None = None,
) -> dict[str, float]:
    """How well clusters agree with classes.

    Args:
        predicted: (N,) cluster of each image, integers from 0.
        truth: (N,) class of each image, integers from 0. Neither the numbers of clusters and
            classes nor their values have to agree.
        ranked: (N, k) most probable clusters of each image, if known.

    Returns:
        In percent: `nmi` (arithmetic mean of the entropies), `ami`, `ari`, `fmi`
        (Fowlkes-Mallows), `accuracy` (one-to-one matching with the most images; an image of a
        cluster without a class is wrong), `purity` (each cluster counts for its most frequent
        class) and, with `ranked`, `top5` (the cluster matched with the image's class is among the
        k). `used_clusters` is a number.

    Raises:
        UserError: empty, of different lengths, not integers, or negative.
    """
    from sklearn import metrics
    from sklearn.metrics.cluster import contingency_matrix

    predicted, truth = _labels(predicted, "clusters"), _labels(truth, "classes")
    if len(predicted) != len(truth):
        raise UserError(
            f"clusters and classes do not match: {len(predicted)} and {len(truth)} images. "
            "Each image has one of both. Predict the same images."
        )
    names, columns = np.unique(predicted, return_inverse=True)
    classes, rows = np.unique(truth, return_inverse=True)
    counts = contingency_matrix(rows, columns, sparse=True)
    matched = _matching(counts)
    hits = matched[rows] == columns
    found = {
        "nmi": metrics.normalized_mutual_info_score(rows, columns),
        "ami": metrics.adjusted_mutual_info_score(rows, columns),
        "ari": metrics.adjusted_rand_score(rows, columns),
        "fmi": metrics.fowlkes_mallows_score(rows, columns),
        "accuracy": hits.mean(),
        "purity": counts.max(axis=0).sum() / len(truth),
    }
    if ranked is not None:
        wanted = np.where(matched >= 0, names[matched], -1)
        found["top5"] = (_ranked(ranked, len(truth)) == wanted[rows][:, None]).any(1).mean()
    percent = {name: 100 * float(value) for name, value in found.items()}
    return {**percent, "used_clusters": len(names)}


def kmeans(features: Tensor, clusters: int, seed: int = 0) -> np.ndarray:
    """Cluster (N,) of each image by scikit-learn's k-means, Euclidean, from `STARTS` k-means++.

    From `LARGE` images on by mini-batches of `BATCH`.

    Args:
        features: (N, D).
        clusters: 2 … N.
        seed: of the starts.

    Raises:
        UserError: features that are not finite.
    """
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if not features.isfinite().all():
        raise UserError(
            "features are not finite: NaN or infinity among them. The training has probably "
            "diverged. Evaluate a run whose loss is finite."
        )
    shared = {"n_clusters": clusters, "n_init": STARTS, "random_state": seed}
    large = len(features) >= LARGE
    model = MiniBatchKMeans(batch_size=BATCH, **shared) if large else KMeans(**shared)
    with warnings.catch_warnings():
        # Fewer different images than clusters: `used_clusters` says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(features.numpy())


def _predicted(config: RunConfig, target: Target, loader: EvalLoader) -> Iterator[Clustering]:
    which = WHICH[target.kind]
    network = predictions.load_network(config, which)
    source = replace(target, origin=network.origin, checkpoint_sha256=network.checkpoint_sha256)
    device = device_of(config)
    features, truth = _features(config, network.backbone, loader)
    role = f"{which}, " if network.has_teacher else ""
    for head in predictions.predict(config, network, features, device):
        yield Clustering(
            source,
            f"predicted classes, {role}head {head.head}, {head.rule}, eval mode, last checkpoint",
            head.classes.numpy(),
            None if head.ranked is None else head.ranked.numpy(),
            truth,
            {"head": head.head, "epoch": network.epochs},
        )


def _kmeans_of(config: RunConfig, target: Target, loader: EvalLoader, clusters: int) -> Clustering:
    features, truth = _features(config, target.backbone, loader)
    how = f"mini-batches of {BATCH}, " if len(features) >= LARGE else ""
    protocol = (
        f"k-means on the features of the backbone, {clusters} clusters, Euclidean, {how}{STARTS} "
        "starts, fitted on these images"
    )
    found = kmeans(features, clusters, config.seed)
    return Clustering(target, protocol, found, None, truth, {"clusters": clusters})


def _features(config: RunConfig, backbone: nn.Module, loader: EvalLoader) -> tuple[Tensor, Tensor]:
    return extract_features(backbone, loader, device_of(config), config.evaluation.precision)


def _matching(counts: csr_array) -> np.ndarray:
    """The cluster of each class, -1 for none: one to one, with the most images in all.

    counts: (classes, clusters), images that each pair has in common. A sparse assignment: the full
    table of a thousand classes and 32,768 clusters takes 262 MB in scipy's dense one.
    """
    from scipy.sparse import coo_array, diags_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    counts = coo_array(counts)
    classes, clusters = counts.shape
    worst = counts.data.max() + 1.0
    costs = coo_array((worst - counts.data, (counts.row, counts.col)), shape=counts.shape)
    # A class that is left over is matched with a column of its own, at the cost of no image.
    left_over = diags_array(np.full(classes, worst))
    rows, columns = min_weight_full_bipartite_matching(hstack([costs, left_over]).tocsr())
    matched = np.full(classes, -1)
    matched[rows] = np.where(columns < clusters, columns, -1)
    return matched


def _labels(values: ArrayLike | Tensor, name: str) -> np.ndarray:
    labels = _array(values)
    if labels.ndim != 1 or labels.size == 0:
        raise UserError(
            f"{name} are not one number an image: shape {labels.shape}. At least one image is "
            "needed. Pass integers (N,)."
        )
    _check_integers(labels, name)
    return labels


def _ranked(values: ArrayLike | Tensor, count: int) -> np.ndarray:
    ranked = _array(values)
    if ranked.ndim != 2 or len(ranked) != count or ranked.shape[1] == 0:
        raise UserError(
            f"ranked clusters do not match: shape {ranked.shape} for {count} images. Each image "
            "has at least one. Pass integers (N, k)."
        )
    _check_integers(ranked, "ranked clusters")
    return ranked


def _check_integers(labels: np.ndarray, name: str) -> None:
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{name} are not integers: {labels.dtype}. They are numbers from 0. Convert them."
        )
    if labels.min() < 0:
        raise UserError(
            f"{name} are negative: {labels.min()}. They are numbers from 0; -1 is an image "
            "without a label. Leave these images out."
        )


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
