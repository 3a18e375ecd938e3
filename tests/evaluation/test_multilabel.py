"""11-point average precision by hand and by its definition; VOC's SVMs against scikit-learn's."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from solo_minent.errors import UserError
from solo_minent.evaluation import multilabel
from solo_minent.evaluation.multilabel import svm_scores, voc07_ap, voc07_map


def by_definition(scores, positives, ignored) -> Fraction:
    """Everingham et al., 2010, eq. 1 and 2, in exact fractions."""
    rows = [i for i in range(len(scores)) if not ignored[i]]
    rows.sort(key=lambda i: (-scores[i], i))
    total = sum(bool(positives[i]) for i in rows)
    points = []
    for rank in range(1, len(rows) + 1):
        right = sum(bool(positives[i]) for i in rows[:rank])
        points.append((Fraction(right, total), Fraction(right, rank)))
    levels = [Fraction(n, 10) for n in range(11)]
    return sum(
        max((p for r, p in points if r >= level), default=Fraction(0)) for level in levels
    ) / len(levels)


def test_by_hand():
    # Ranking + - + -: precision 1, 1/2, 2/3, 1/2 at recall 1/2, 1/2, 1, 1. The six levels up to 0.5
    # take 1, the five above take 2/3.
    ap = voc07_ap([0.9, 0.8, 0.7, 0.6], [True, False, True, False])
    assert ap == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-15)


def test_a_difficult_image_counts_for_nothing():
    # Without the second image the ranking is + + -.
    assert voc07_ap([4, 3, 2, 1], [1, 0, 1, 0], [0, 1, 0, 0]) == 1.0
    # A difficult image may carry any label.
    assert voc07_ap([4, 3, 2, 1], [1, 1, 1, 0], [0, 1, 0, 0]) == 1.0
    assert voc07_ap([4, 3, 2, 1], [1, 0, 1, 0]) < 1.0


def test_recall_levels_are_met_exactly():
    # Ten positives: the third is recall 0.3, which 3 * 0.1 in binary misses. The rest comes behind
    # 70 others, so that level 0.3 is worth 1 where it is met.
    positives = np.r_[np.ones(3), np.zeros(70), np.ones(7)].astype(bool)
    scores = -np.arange(80.0)
    assert voc07_ap(scores, positives) == pytest.approx((4 + 7 * 10 / 80) / 11, abs=1e-15)


def test_equal_scores_keep_their_order():
    assert voc07_ap(np.zeros(3), [True, False, False]) == 1.0
    assert voc07_ap(np.zeros(3), [False, False, True]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_by_definition(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 60))
    scores = rng.integers(0, 12, size) / 4  # with ties
    positives = rng.random(size) < rng.choice([0.1, 0.5, 0.9])
    ignored = rng.random(size) < 0.2
    row = rng.integers(size)
    positives[row], ignored[row] = True, False
    expected = by_definition(scores, positives, ignored)
    assert voc07_ap(scores, positives, ignored) == pytest.approx(float(expected), abs=1e-14)


def test_the_mean_is_over_classes():
    scores = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    labels = np.array([[1, -1], [-1, 1], [0, 0]])
    mean, each = voc07_map(scores, labels)
    assert each.tolist() == [1.0, 1.0] and mean == 1.0
    labels = np.array([[-1, -1], [1, 1], [0, -1]])
    mean, each = voc07_map(scores, labels)
    assert each.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [True]), r"one score and one label an image: \(2,\), \(1,\)"),
        ((np.ones((2, 2)), np.ones((2, 2))), "one class at a time"),
        (([1.0, float("nan")], [True, False]), "scores are not finite"),
        (([1.0, 2.0], [False, False]), "undefined: no positive image"),
        (([1.0, 2.0], [False, True], [False, True]), "undefined: no positive image"),
    ],
)
def test_what_has_no_average_precision(arguments, message):
    with pytest.raises(UserError, match=message):
        voc07_ap(*arguments)


@pytest.fixture
def problem():
    """120 images of 6 features, two classes that depend on them, some difficult ones."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 6))
    labels = np.where(features[:, :2] + 0.3 * rng.normal(size=(160, 2)) > 0, 1, -1)
    labels[rng.random(labels.shape) < 0.1] = 0
    return features[:120], labels[:120], features[120:], labels[120:]


def test_svms_are_scikit_learns(problem):
    train, labels, test, _ = problem
    found = svm_scores(train, labels, test, ["cat", "dog"], seed=3, progress=False)
    assert found.scores.shape == (40, 2)
    train, test = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5) for x in (train, test))
    for c in range(2):
        known = labels[:, c] != 0
        means = {}
        for cost in [0.01, 0.1] + [2.0**-power for power in range(4, 20)]:
            svm = LinearSVC(
                C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=3
            )
            args = (svm, train[known], labels[known, c])
            means[cost] = cross_val_score(*args, cv=3, scoring="average_precision").mean()
        assert means[found.costs[c]] == max(means.values())
        svm.set_params(C=found.costs[c]).fit(*args[1:])
        np.testing.assert_array_equal(found.scores[:, c], svm.decision_function(test))


def test_svms_learn(problem):
    train, labels, test, truth = problem
    found = svm_scores(train, labels, test, ["cat", "dog"], progress=False)
    learned, _ = voc07_map(found.scores, truth)
    chance, _ = voc07_map(np.random.default_rng(1).normal(size=truth.shape), truth)
    assert learned > 0.8 > chance + 0.1
    assert found.unconverged == 0


def test_fits_that_stop_early_are_counted(problem, monkeypatch):
    monkeypatch.setattr(multilabel, "MAX_ITER", 1)
    train, labels, test, _ = problem
    with warnings.catch_warnings(record=True) as caught:
        found = svm_scores(train, labels, test, ["cat", "dog"], progress=False)
    assert found.unconverged > 0
    assert not caught, "they are counted instead"


def test_what_svms_cannot_learn(problem):
    train, labels, test, _ = problem
    with pytest.raises(UserError, match="features are not finite"):
        svm_scores(np.full_like(train, np.nan), labels, test, ["cat", "dog"], progress=False)
    labels = labels.copy()
    labels[labels[:, 1] == 1, 1] = -1
    labels[:2, 1] = 1
    with pytest.raises(UserError, match="3-fold cross-validation: dog has 2 positive or negative"):
        svm_scores(train, labels, test, ["cat", "dog"], progress=False)
