"""What the features of a trained run show: neighbours, a map, confusions."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from solo_minent.data.images import ImageSet
from solo_minent.data.loaders import labelled_images
from solo_minent.evaluation.knn import knn_predict, nearest_neighbors
from solo_minent.evaluation.targets import check_knn_k, features_of, load_target
from solo_minent.evaluation.umap import FEWEST, LIMIT, project
from solo_minent.schema import RunConfig

if TYPE_CHECKING:
    from PIL.Image import Image

# Beyond these a seeded, stratified part stands for the set, and the page says so.
MOST_TRAIN, MOST_TEST = 50_000, 10_000
QUERIES, NEIGHBOURS = 10, 6
PAIRS = 10


@dataclass(frozen=True)
class Shown:
    """An image, its class, and whether that is the query's (None for the query itself)."""

    image: Image
    label: str
    same: bool | None = None


@dataclass(frozen=True)
class Examples:
    """Of one run.

    Attributes:
        queries: rows of a query from the test set and its nearest training images.
        points: (P, 2), test images in the plane; point_labels: (P,) their classes.
        projection: how they came there: umap or pca.
        counts: (C, C) test images by true and predicted class.
        classes: their names.
        k: of the majority vote that predicted them.
        train, test: how many images; all_train, all_test: how many there are.
        weights: sha256 of the backbone.
        no_queries: why there are none.
    """

    queries: list[list[Shown]]
    points: np.ndarray
    point_labels: np.ndarray
    projection: str
    counts: np.ndarray
    classes: list[str]
    k: int
    train: int
    test: int
    all_train: int
    all_test: int
    weights: str | None
    no_queries: str = ""

    @property
    def accuracy(self) -> float:
        """Of the predictions, in percent."""
        return 100 * float(np.trace(self.counts) / max(self.counts.sum(), 1))

    @property
    def confused(self) -> list[tuple[str, str, int, int]]:
        """The most frequent confusions: (true, predicted, images, images of the true class)."""
        wrong = self.counts * ~np.eye(len(self.classes), dtype=bool)
        order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        pairs = [divmod(int(flat), len(self.classes)) for flat in order]
        return [
            (self.classes[a], self.classes[b], int(wrong[a, b]), int(self.counts[a].sum()))
            for a, b in pairs
            if wrong[a, b]
        ]


def examples_of(config: RunConfig, progress: bool = True) -> Examples:
    """Looks at the features of a trained run.

    Predictions are those of the run's own kNN: majority vote of `evaluation.knn_k` Euclidean
    neighbours. Neighbours are Euclidean as well.

    Raises:
        UserError: the run is not finished, its data is missing or has no labels.
    """
    target = load_target(config)
    whole = [labelled_images(config, split) for split in ("train", "test")]
    sampled = _sampled(config, *map(len, whole))
    train, test = (
        images if sampled is config else labelled_images(sampled, split)
        for images, split in zip(whole, ("train", "test"), strict=True)
    )
    check_knn_k(sampled, len(train))
    features = features_of(target, sampled, progress)
    k = config.evaluation.knn_k
    predicted = knn_predict(
        features.train, features.train_labels, features.test, k, None, "euclidean"
    )
    classes = max(train.classes, test.classes, key=len)
    counts = np.zeros((len(classes),) * 2, dtype=int)
    np.add.at(counts, (features.test_labels.numpy(), predicted.numpy()), 1)
    enough = len(features.test) >= FEWEST["umap"]
    projection = "umap" if umap_installed() and enough else "pca"
    points, point_labels = _projected(features.test, features.test_labels, projection, config.seed)
    # The features skip images that cannot be decoded: rows are no longer numbers of images.
    whole_rows = len(features.train) == len(train) and len(features.test) == len(test)
    return Examples(
        queries=_queries(features, train, test) if whole_rows else [],
        points=points,
        point_labels=point_labels,
        projection=projection,
        counts=counts,
        classes=classes,
        k=k,
        train=len(features.train),
        test=len(features.test),
        all_train=len(whole[0]),
        all_test=len(whole[1]),
        weights=target.checkpoint_sha256,
        no_queries="" if whole_rows else "corrupt images were left out of the features",
    )


def umap_installed() -> bool:
    return importlib.util.find_spec("umap") is not None


def _sampled(config: RunConfig, train: int, test: int) -> RunConfig:
    data = config.data
    if train > MOST_TRAIN:
        data = replace(data, train_images=MOST_TRAIN)
    if test > MOST_TEST:
        data = replace(data, val_images=MOST_TEST)
    return config if data is config.data else replace(config, data=data)


def _projected(features, labels, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.arange(len(features))
    if len(chosen) > LIMIT:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(chosen, LIMIT, replace=False))
    return project(features[chosen], method=method, seed=seed), labels[chosen].numpy()


def _queries(features, train: ImageSet, test: ImageSet) -> list[list[Shown]]:
    """The first test image of classes spread over all of them, so that runs show the same ones."""
    present, first = np.unique(test.targets, return_index=True)
    places = np.linspace(0, len(present) - 1, min(QUERIES, len(present))).round().astype(int)
    chosen = first[places]
    k = min(NEIGHBOURS, len(train))
    _, near = nearest_neighbors(features.train, features.test[chosen], k, "euclidean")
    rows = []
    for query, neighbours in zip(chosen.tolist(), near.tolist(), strict=True):
        image, truth = test[query]
        row = [Shown(image, test.classes[truth])]
        for index in neighbours:
            image, label = train[index]
            row.append(Shown(image, train.classes[label], label == truth))
        rows.append(row)
    return rows
