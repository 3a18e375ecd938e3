"""The linear probe on cached features, through solo-learn's LinearModel."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from solo_minent.errors import UserError
from solo_minent.evaluation.linear import linear_accuracy
from solo_minent.evaluation.targets import Features
from solo_minent.schema import LinearConfig


@pytest.fixture(scope="module")
def digits():
    """Real digits as features: pixels in [0, 1], 1,347 to train on and 450 held out."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.astype(np.float32) / 16, y, random_state=0, stratify=y)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Features(train, train_labels, test, test_labels)


def test_equals_logistic_regression_within_a_point(digits):
    # The protocol's own rates are meant for data sets with many more steps an epoch.
    config = LinearConfig(max_epochs=60, batch_size=64, lr=0.05, final_lr=1e-3)
    ours = linear_accuracy(digits, 10, config, progress=False)
    reference = LogisticRegression(max_iter=1000).fit(digits.train, digits.train_labels)
    assert ours["top1"] == pytest.approx(
        100 * reference.score(digits.test, digits.test_labels), abs=1.0
    )
    assert ours["top1"] < ours["top5"] <= 100


def test_the_seed_decides_and_the_global_generator_is_left_alone(digits):
    config = LinearConfig(max_epochs=3)
    torch.manual_seed(5)
    first = linear_accuracy(digits, 10, config, seed=1, progress=False)
    state = torch.get_rng_state()
    assert first == linear_accuracy(digits, 10, config, seed=1, progress=False)
    assert first != linear_accuracy(digits, 10, config, seed=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_classes_have_a_top5(digits):
    few = Features(digits.train, digits.train_labels % 2, digits.test, digits.test_labels % 2)
    result = linear_accuracy(few, 2, LinearConfig(max_epochs=2), progress=False)
    assert result["top5"] == 100.0


@pytest.mark.parametrize(("shift", "classes"), [(-1, 10), (0, 9)])
def test_labels_beyond_the_classes_are_refused(digits, shift, classes):
    wrong = digits._replace(train_labels=digits.train_labels + shift)
    with pytest.raises(UserError, match="labels do not suit a linear probe"):
        linear_accuracy(wrong, classes, progress=False)
