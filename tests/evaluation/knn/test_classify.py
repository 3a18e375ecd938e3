"""kNN: every prediction equal to scikit-learn's and to a brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from solo_minent.errors import UserError
from solo_minent.evaluation.knn import (
    candidates,
    few_shot_1nn,
    knn_accuracy,
    knn_grid,
    knn_predict,
    nearest_neighbors,
    neighbors,
)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    # Real-valued features without exact ties: the pixels through a fixed rotation.
    rotation = np.linalg.qr(np.random.RandomState(0).randn(64, 64))[0]
    feats = (bunch.data + np.random.RandomState(1).randn(*bunch.data.shape) * 0.1) @ rotation
    return feats[:1200], bunch.target[:1200], feats[1200:], bunch.target[1200:]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_majority_vote_equals_scikit_learn(digits, k, distance, dtype):
    train, labels, test, _ = digits
    train, test = train.astype(dtype), test.astype(dtype)
    model = KNeighborsClassifier(k, metric=distance, algorithm="brute")
    expected = model.fit(train.astype(np.float64), labels).predict(test.astype(np.float64))
    predicted = knn_predict(train, labels, test, k=k, temperature=None, distance=distance)
    assert predicted.dtype == torch.int64
    assert predicted.tolist() == expected.tolist()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_weighted_vote_equals_scikit_learn_and_brute_force(
    digits, temperature, distance, brute_force
):
    train, labels, test, _ = digits
    train, test = train[:500].astype(np.float32), test[:200].astype(np.float32)
    labels = labels[:500]

    def weights(d):
        similarity = 1 - d if distance == "cosine" else -d
        return np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)

    model = KNeighborsClassifier(20, metric=distance, algorithm="brute", weights=weights)
    expected = model.fit(train.astype(np.float64), labels).predict(test.astype(np.float64))
    predicted = knn_predict(train, labels, test, 20, temperature, distance).tolist()
    assert predicted == expected.tolist()
    if distance == "cosine":  # exp(-distance / 0.07) underflows in the plain brute force
        assert predicted == brute_force(train, labels, test, 20, temperature, distance)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_integer_pixels_with_true_ties_equal_brute_force(distance, brute_force):
    bunch = load_digits()
    for k in (1, 3, 10):
        expected = brute_force(
            bunch.data[:1400], bunch.target[:1400], bunch.data[1400:], k, None, distance
        )
        predicted = knn_predict(
            bunch.data[:1400], bunch.target[:1400], bunch.data[1400:], k, None, distance
        )
        assert predicted.tolist() == expected


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_chunks_do_not_change_the_neighbors(digits, distance, monkeypatch):
    train, test = digits[0], digits[2][:40]
    whole = nearest_neighbors(train, test, 7, distance)
    monkeypatch.setattr(candidates, "_CHUNK", 13)
    monkeypatch.setattr(candidates, "_PRODUCT_ELEMENTS", 256)
    monkeypatch.setattr(neighbors, "_PAIR_ELEMENTS", 5000)
    small = nearest_neighbors(train, test, 7, distance)
    assert torch.equal(whole[1], small[1])
    assert torch.equal(whole[0], small[0])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_more_copies_at_the_kth_place_than_spare_candidates(distance):
    # Points 0..99 are copies of the 5th neighbour: the lowest indices must win.
    rng = np.random.RandomState(0)
    target = rng.randn(37)
    near = [target + 0.01 * i * np.eye(37)[i] for i in range(1, 5)]
    copy = target + 0.5 * np.eye(37)[9]
    far = [target + 3.0 * rng.randn(37) for _ in range(50)]
    train = np.array([copy] * 100 + far + near)
    index = nearest_neighbors(train, target[None], 8, distance)[1][0].tolist()
    assert index == [150, 151, 152, 153, 0, 1, 2, 3]


def test_near_ties_below_float32_resolution_are_ordered():
    # A large offset: the float32 (and the expanded float64) distances cannot tell these apart.
    steps = np.array([5, 3, 1, 4, 2], dtype=np.float64)
    train = np.stack([1e6 + steps * 1e-7, np.full(5, 1e6)], axis=1)
    test = np.full((1, 2), 1e6)
    assert nearest_neighbors(train, test, 5, "euclidean")[1][0].tolist() == [2, 4, 1, 3, 0]
    many = np.concatenate([train, train[:1] + np.arange(1, 40)[:, None] * [1e-6, 0]])
    assert nearest_neighbors(many, test, 5, "euclidean")[1][0].tolist() == [2, 4, 1, 3, 0]


def test_float32_near_ties_equal_brute_force(brute_force):
    rng = np.random.RandomState(3)
    base = rng.randn(1, 16).astype(np.float32)
    train = base + (rng.randn(300, 16) * 1e-6).astype(np.float32)
    test = base + (rng.randn(40, 16) * 1e-6).astype(np.float32)
    labels = rng.randint(0, 5, 300)
    expected = brute_force(train, labels, test, 9, None, "euclidean")
    assert knn_predict(train, labels, test, 9, None, "euclidean").tolist() == expected


def test_rescaled_copies_tie_in_cosine():
    # 1/sqrt(2), 3/sqrt(18), … differ in their last bits: the tie is still resolved by index.
    train = np.array([[s, s, 0.3 * s] for s in (7.0, 3.0, 11.0, 1.0, 13.0, 0.1)])
    similarity, index = nearest_neighbors(train, np.array([[1.0, 2.0, 0.7]]), 6, "cosine")
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(set(similarity[0].tolist())) == 1


def test_votes_that_tie_go_to_the_smallest_label():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    labels = [9, -4, 9, -4]
    test = np.zeros((1, 2))
    for temperature in (None, 0.07):
        assert knn_predict(train, labels, test, 4, temperature, "euclidean").tolist() == [-4]
    assert knn_predict(train, labels, test, 3, None, "euclidean").tolist() == [9]


def test_temperature_lets_near_neighbors_outvote_many():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    test = torch.tensor([[1.0, 0.1]])
    labels = torch.tensor([8, 3, 3, 3])
    assert knn_predict(train, labels, test, 4, None).tolist() == [3]
    assert knn_predict(train, labels, test, 4, 0.07).tolist() == [8]
    # exp(1 / 1e-4) and exp(0.1 / 1e-4) would both overflow.
    assert knn_predict(train, labels, test, 4, 1e-4).tolist() == [8]


def test_euclidean_weights_are_exp_of_minus_distance():
    # 1 vote at distance 1 against 2 at distance d: equal weights at d = 1 + T ln 2.
    temperature = 0.5
    for shift, winner in ((-0.01, 1), (0.01, 0)):
        d = 1 + temperature * np.log(2) + shift
        train, labels = np.array([[1.0], [d], [-d]]), [0, 1, 1]
        assert knn_predict(train, labels, [[0.0]], 3, temperature, "euclidean").item() == winner


def test_k_equal_to_the_set_and_labels_absent_from_it(digits):
    train, labels, test, _ = digits
    mask = labels != 4
    train, labels = train[mask][:60], labels[mask][:60]
    predicted = knn_predict(train, labels, test, len(train), None)
    counts = np.bincount(labels)
    assert set(predicted.tolist()) == {int(counts.argmax())}


def test_collapsed_and_zero_features_take_the_first_points():
    ones, zeros = torch.ones(500, 8), torch.zeros(500, 8)
    for feats in (ones, zeros):
        for distance in ("cosine", "euclidean"):
            index = nearest_neighbors(feats, feats[:30], 5, distance)[1]
            assert torch.equal(index, torch.arange(5).expand(30, 5))


def test_global_matmul_precision_does_not_matter(digits):
    train, labels, test, _ = digits
    train, test = train.astype(np.float32), test.astype(np.float32)
    before = torch.get_float32_matmul_precision()
    expected = nearest_neighbors(train, test, 5)[1]
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest_neighbors(train, test, 5)[1], expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_grid_equals_single_calls_and_accuracy_counts(digits):
    train, labels, test, truth = digits
    grid = knn_grid(train, labels, test, [1, 20], [None, 0.07], ["cosine", "euclidean"])
    assert len(grid) == 8
    for (k, temperature, distance), predicted in grid.items():
        single = knn_predict(train, labels, test, k, temperature, distance)
        assert torch.equal(predicted, single)
    accuracy = knn_accuracy(train, labels, test, truth, 20, 0.07)
    assert accuracy == np.mean(grid[20, 0.07, "cosine"].numpy() == truth)
    assert accuracy > 0.9


def test_tensors_arrays_and_views_of_arrays_are_the_same(digits):
    train, labels, test, _ = digits
    expected = knn_predict(train, labels, test)
    frozen = train.copy()
    frozen.flags.writeable = False
    assert torch.equal(knn_predict(frozen, labels.tolist(), test), expected)
    back = np.ascontiguousarray(train[::-1])[::-1]
    assert torch.equal(knn_predict(back, torch.tensor(labels), torch.tensor(test)), expected)


def test_few_shot_on_a_hand_made_case():
    # Class 0 at 0, class 1 at 10 except one mislabelled point at 0 that only some draws contain.
    train = np.array([[0.0], [0.0], [10.0], [0.5]])
    labels = np.array([0, 0, 1, 1])
    test, truth = np.array([[0.4], [9.0]]), np.array([0, 1])
    mean, std = few_shot_1nn(train, labels, test, truth, 1, 400, 0, "euclidean")
    # Draw 10.0: both right. Draw 0.5: the first test point is wrong, 9.0 is right.
    share = (mean - 0.5) / 0.5
    assert abs(share - 0.5) < 0.1
    assert std == pytest.approx(0.5 * np.sqrt(share * (1 - share)))
    assert few_shot_1nn(train, labels, test, truth, 2, 7, 0, "euclidean") == (0.5, 0.0)
    assert few_shot_1nn(train, labels, test, truth, 1, 9, 5) == few_shot_1nn(
        train, labels, test, truth, 1, 9, 5
    )


GOOD = {
    "train_feats": np.eye(4),
    "train_labels": [0, 1, 2, 3],
    "test_feats": np.eye(4)[:2],
    "k": 2,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 5}, "k must be a number of neighbours: 5"),
        ({"k": 0}, "k must be"),
        ({"k": 1.5}, "k must be"),
        ({"k": True}, "k must be"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"distance": "manhattan"}, "unknown distance: manhattan"),
        ({"train_feats": np.zeros((0, 4)), "train_labels": []}, "training features"),
        ({"test_feats": np.zeros((0, 4))}, "test features"),
        ({"test_feats": np.eye(4)[0]}, "test features"),
        ({"test_feats": np.eye(3)}, "differ in width: 4 and 3"),
        ({"train_feats": np.full((4, 4), np.nan)}, "NaN"),
        ({"test_feats": np.array([[1, 2, 3, np.inf]])}, "NaN, infinity"),
        ({"train_labels": [0, 1, 2]}, "labels do not match"),
        ({"train_labels": [0.0, 1.0, 2.0, 3.0]}, "labels must be integers"),
    ],
)
def test_bad_input_is_one_clear_error(change, words):
    with pytest.raises(UserError, match=words):
        knn_predict(**{**GOOD, **change})


def test_few_shot_bad_input():
    feats, labels = np.eye(4), [0, 0, 1, 1]
    with pytest.raises(UserError, match="too few images for 3 shots: class 0 has 2"):
        few_shot_1nn(feats, labels, feats, labels, shots=3)
    with pytest.raises(UserError, match="shots must be"):
        few_shot_1nn(feats, labels, feats, labels, shots=0)
    with pytest.raises(UserError, match="empty kNN grid"):
        knn_grid(feats, labels, feats, [], [None])
