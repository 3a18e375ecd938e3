"""VOC 2007 classification: linear SVMs on frozen features, mean 11-point average precision.

The classifiers are those of Goyal et al., 2019, arXiv:1905.01235 (facebookresearch/
fair_self_supervision_benchmark, tools/svm): features of unit length, one squared-hinge SVM a class
whose positives weigh 2, the cost by the average precision in 3-fold cross-validation on train and
val. There difficult images are negatives of the training; here they are left out of it.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from solo_minent.console import progress_bar
from solo_minent.errors import UserError

COSTS = (0.01, 0.1, *(0.5**power for power in range(4, 20)))
FOLDS = 3
POSITIVE_WEIGHT = 2
MAX_ITER = 2000
TOLERANCE = 1e-4
LEVELS = 10  # recall 0, 0.1, …, 1


class SvmScores(NamedTuple):
    """scores: float64 (T, C), larger is likelier; costs: the chosen one of each class; unconverged:
    fits of the search and of the last training that stopped at `MAX_ITER`."""

    scores: np.ndarray
    costs: list[float]
    unconverged: int


def voc07_ap(scores: ArrayLike, positives: ArrayLike, ignored: ArrayLike | None = None) -> float:
    """The 11-point interpolated average precision of one class, in [0, 1].

    Everingham et al., 2010, "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 88, eq. 1 and
    2: the mean over r = 0, 0.1, …, 1 of the largest precision at a recall of at least r, 0 where no
    rank has that recall. As in the devkit's VOCevalcls, images of equal score keep their order.

    Args:
        scores: numbers (N,), larger is likelier.
        positives: bool (N,), images with the class.
        ignored: bool (N,), images that count neither as right nor as wrong (difficult ones).

    Raises:
        UserError: lengths that differ, scores that are not finite, or no positive image.
    """
    scores = np.asarray(scores, dtype=np.float64)
    positives = np.asarray(positives, dtype=bool)
    ignored = np.zeros_like(positives) if ignored is None else np.asarray(ignored, dtype=bool)
    if not scores.ndim == 1 or not scores.shape == positives.shape == ignored.shape:
        raise UserError(
            f"average precision needs one score and one label an image: {scores.shape}, "
            f"{positives.shape} and {ignored.shape}. They are (N,). Pass one class at a time."
        )
    if not np.isfinite(scores).all():
        raise UserError(
            "scores are not finite: NaN or infinity among them. A ranking needs numbers. "
            "Check the features for NaN."
        )
    kept = ~ignored
    hits = positives[kept][np.argsort(-scores[kept], kind="stable")]
    total = int(hits.sum())
    if not total:
        raise UserError(
            "average precision is undefined: no positive image. The class needs one at least. "
            "Evaluate on the whole test split."
        )
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    # The best precision from each rank on; recall never falls with the rank.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall >= level / 10 in whole numbers: 0.3 is no binary fraction.
    first = np.searchsorted(LEVELS * found, np.arange(LEVELS + 1) * total)
    return float(best[first].mean())


def voc07_map(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of `voc07_ap` over the classes, and each class's, in [0, 1].

    Args:
        scores: (N, C).
        labels: int (N, C): 1 positive, 0 difficult (ignored), -1 negative.

    Raises:
        UserError: as `voc07_ap`.
    """
    each = [
        voc07_ap(scores[:, c], labels[:, c] == 1, labels[:, c] == 0) for c in range(labels.shape[1])
    ]
    return float(np.mean(each)), np.array(each)


def svm_scores(
    train: ArrayLike,
    labels: np.ndarray,
    test: ArrayLike,
    classes: list[str],
    seed: int = 0,
    progress: bool = True,
) -> SvmScores:
    """Scores of test images by one linear SVM a class, see the module.

    Args:
        train, test: features (N, D) and (T, D).
        labels: int (N, C) of the training images, as for `voc07_map`.
        classes: C names, for errors.
        seed: of liblinear's order of coordinates.
        progress: show a bar.

    Raises:
        UserError: features that are not finite, or a class without enough images for the folds.
    """
    from sklearn.exceptions import ConvergenceWarning

    train, test = (_unit(features) for features in (train, test))
    for c, name in enumerate(classes):
        fewest = min(int((labels[:, c] == value).sum()) for value in (1, -1))
        if fewest < FOLDS:
            raise UserError(
                f"too few images for {FOLDS}-fold cross-validation: {name} has {fewest} positive "
                f"or negative ones. Each class needs {FOLDS} of both. Use the whole train and val."
            )
    scores, costs, unconverged = [], [], 0
    with progress_bar(progress) as bar:
        for c in bar.track(range(len(classes)), description="SVM of each class"):
            known = labels[:, c] != 0
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                best = _search(train[known], labels[known, c], seed)
            unconverged += sum(issubclass(w.category, ConvergenceWarning) for w in caught)
            scores.append(best.decision_function(test))
            costs.append(float(best.best_params_["C"]))
    return SvmScores(np.stack(scores, axis=1), costs, unconverged)


def _search(features: np.ndarray, labels: np.ndarray, seed: int):  # noqa: ANN202 (sklearn's class)
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    svm = LinearSVC(
        class_weight={1: POSITIVE_WEIGHT, -1: 1},
        dual=True,
        tol=TOLERANCE,
        max_iter=MAX_ITER,
        random_state=seed,
    )
    search = GridSearchCV(svm, {"C": sorted(COSTS)}, cv=FOLDS, scoring="average_precision")
    return search.fit(features, labels)


def _unit(features: ArrayLike) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise UserError(
            "features are not finite: NaN or infinity among them. The weights have diverged. "
            "Evaluate an earlier checkpoint."
        )
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)
