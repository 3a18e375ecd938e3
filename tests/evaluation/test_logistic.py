"""Logistic regression: scikit-learn's own, the choice of its strength, accuracies by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from solo_minent.errors import UserError
from solo_minent.evaluation import logistic
from solo_minent.evaluation.logistic import (
    L2_VALUES,
    choose_l2,
    fit_logistic,
    mean_per_class,
    top1,
)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.data[:400] / 16, data.target[:400], data.data[400:600] / 16, data.target[400:600]


def test_the_range_is_simclrs():
    assert len(L2_VALUES) == 45
    assert L2_VALUES[0] == pytest.approx(1e-6) and L2_VALUES[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log10(L2_VALUES)), 0.25)


@pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0])
def test_scikit_learns_own(digits, l2):
    train, labels, test, _ = digits
    model, converged = fit_logistic(train, labels, l2)
    own = LogisticRegression(C=1 / l2, max_iter=1000, tol=1e-5).fit(train, labels)
    assert converged
    np.testing.assert_allclose(model.coef_, own.coef_, atol=1e-12)
    np.testing.assert_array_equal(model.predict(test), own.predict(test))


def test_the_minimum_has_no_gradient(digits):
    # sum_i cross_entropy_i + l2 / 2 ||W||^2: the gradient is (P - Y)^T X + l2 W.
    train, labels, _, _ = digits
    model, _ = fit_logistic(train, labels, 3.0)
    error = model.predict_proba(train) - np.eye(10)[labels]
    gradient = error.T @ train + 3.0 * model.coef_
    assert np.abs(gradient).max() < logistic.TOLERANCE * len(train)
    assert np.abs(3.0 * model.coef_).max() > 50 * np.abs(gradient).max()


def test_the_strength_is_the_best_on_the_validation_images(digits):
    train, labels, val, val_labels = digits
    # Noise that a weak penalty would fit.
    train = np.concatenate([train, np.random.default_rng(0).normal(size=(400, 300))], axis=1)
    val = np.concatenate([val, np.random.default_rng(1).normal(size=(200, 300))], axis=1)
    choice = choose_l2(train, labels, val, val_labels, progress=False)
    scores = []
    for l2 in L2_VALUES[::4]:
        model = LogisticRegression(C=1 / l2, max_iter=1000, tol=1e-5).fit(train, labels)
        scores.append(np.mean(model.predict(val) == val_labels))
    assert choice.scores[::4].tolist() == scores
    assert choice.scores[list(L2_VALUES).index(choice.l2)] == choice.scores.max() >= max(scores)
    assert 1e-6 < choice.l2 < 1e5


def test_of_equal_strengths_the_strongest(digits):
    train, labels = np.array([[-1.0], [1.0]] * 4), np.array([0, 1] * 4)
    choice = choose_l2(train, labels, train, labels, progress=False)
    assert choice.scores.min() == 1.0
    assert choice.l2 == L2_VALUES[-1]


def test_the_metric_decides():
    # Ten of class 0 at zero, one of class 1: top-1 likes a model that knows class 0 alone.
    predicted, labels = np.array([0] * 11), np.array([0] * 10 + [1])
    assert top1(predicted, labels) == pytest.approx(10 / 11)
    assert mean_per_class(predicted, labels) == 0.5


def test_mean_per_class_by_hand():
    labels = np.array([4, 4, 4, 4, 7, 7, 9])
    predicted = np.array([4, 4, 4, 9, 7, 4, 9])
    assert mean_per_class(predicted, labels) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert mean_per_class(predicted, labels) == balanced_accuracy_score(labels, predicted)
    assert top1(predicted, labels) == pytest.approx(5 / 7)


def test_a_class_of_the_test_that_was_not_trained_is_wrong():
    assert mean_per_class(np.array([1, 1]), np.array([1, 2])) == 0.5


def test_fits_that_stop_early_are_told(digits, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_ITER", 2)
    train, labels, val, val_labels = digits
    with warnings.catch_warnings(record=True) as caught:
        _, converged = fit_logistic(train, labels, 1e-3)
        choice = choose_l2(train, labels, val, val_labels, progress=False)
    assert not converged and choice.unconverged > 20
    assert not caught, "they are told by the result"


def test_labels_need_no_order(digits):
    train, labels, test, _ = digits
    keep = np.isin(labels, (3, 8))
    model, _ = fit_logistic(train[keep], labels[keep], 1.0)
    assert set(model.predict(test)) == {3, 8}


def test_what_cannot_be_fitted(digits):
    train, labels, _, _ = digits
    with pytest.raises(UserError, match="features are not finite"):
        fit_logistic(np.where(train > 0.5, np.inf, train), labels, 1.0)
    with pytest.raises(UserError, match="logistic regression has one class: 400"):
        fit_logistic(train, np.zeros(400, dtype=int), 1.0)
