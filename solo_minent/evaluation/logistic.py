"""Logistic regression on frozen features, its L2 strength chosen on held-out training images.

The linear protocol of transfer learning: Kornblith et al., 2019, arXiv:1805.08974, and SimCLR, Chen
et al., 2020, arXiv:2002.05709, appendix B.8: multinomial logistic regression by L-BFGS, no
augmentation, 45 strengths, the best on validation images, trained again on all. scikit-learn fits
it, in float64 on the CPU. A step of each of the 46 fits costs O(N D C): for large sets with many
classes, such as Food-101 or ImageNet, a linear preset is the cheaper way.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solo_minent.console import progress_bar
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

L2_VALUES = np.logspace(-6, 5, 45)
SMALL = 5_000_000  # numbers in the features
MAX_ITER = 1000
TOLERANCE = 1e-5


class Choice(NamedTuple):
    """l2: the best strength; scores: the metric for each of `L2_VALUES`; unconverged: how many fits
    stopped before they had converged."""

    l2: float
    scores: np.ndarray
    unconverged: int


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions in [0, 1]."""
    return float((predicted == labels).mean())


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of `labels` of the share of its images that are right, in [0, 1]."""
    classes, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    right = np.bincount(which, weights=predicted == labels, minlength=len(classes))
    return float((right / sizes).mean())


METRICS = {"top1": top1, "mean_per_class": mean_per_class}


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, l2: float
) -> tuple[LogisticRegression, bool]:
    """Minimises sum_i cross_entropy_i + l2 / 2 ||W||^2; the bias is free.

    Args:
        features: (N, D).
        labels: integers (N,), at least two classes.
        l2: strength, scikit-learn's 1 / C.

    Returns:
        The model and whether it has converged within `MAX_ITER` iterations.

    Raises:
        UserError: features that are not finite, or one class alone.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if not np.isfinite(features).all():
        raise UserError(
            "features are not finite: NaN or infinity among them. The weights have diverged. "
            "Evaluate an earlier checkpoint."
        )
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"logistic regression has one class: {len(labels)} training images. It needs two. "
            "Add a second class folder."
        )
    model = LogisticRegression(C=1 / l2, max_iter=MAX_ITER, tol=TOLERANCE)
    # Threads on small matrices wait for each other longer than they work.
    threads = 1 if features.size < SMALL else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads):
        warnings.simplefilter("always")
        model.fit(features, labels)
    failed = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    return model, not failed


def choose_l2(
    train: np.ndarray,
    labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    metric: str = "top1",
    progress: bool = True,
) -> Choice:
    """The strength of `L2_VALUES` that is best on validation images; of equal ones the strongest.

    Every fit begins at zero, as the last one does: with weak strengths, weights that began
    elsewhere would stop elsewhere.

    Args:
        train, val: features (N, D) and (V, D).
        labels, val_labels: integers (N,) and (V,).
        metric: a key of `METRICS`.
        progress: show a bar.

    Raises:
        UserError: as `fit_logistic`.
    """
    scores, unconverged = np.zeros(len(L2_VALUES)), 0
    with progress_bar(progress) as bar:
        for row in bar.track(range(len(L2_VALUES)), description="L2 strengths"):
            model, converged = fit_logistic(train, labels, L2_VALUES[row])
            unconverged += not converged
            scores[row] = METRICS[metric](model.predict(val), val_labels)
    best = max(range(len(L2_VALUES)), key=lambda row: (scores[row], row))
    return Choice(float(L2_VALUES[best]), scores, unconverged)
