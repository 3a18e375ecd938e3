"""The search: real and adversarial data, every form of products, memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.neighbors import KNeighborsClassifier

from solo_minent.evaluation.knn import candidates, knn_predict, nearest_neighbors

REAL = {
    "digits": lambda: load_digits(return_X_y=True),
    "iris": lambda: load_iris(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "digit rows": lambda: (
        load_digits().images.reshape(-1, 8, 8).mean(2) - 4.0,
        load_digits().target,
    ),
}


def settled(feats, k, distance):
    """Split in two, without test points that are as far from the k-th neighbour as from the next.

    scikit-learn leaves such ties to chance; ours go by index and have tests of their own.
    """
    train, test = feats[::2], feats[1::2]
    model = KNeighborsClassifier(k, metric=distance, algorithm="brute")
    model.fit(train, np.zeros(len(train)))
    far = model.kneighbors(test, k + 1)[0]
    return train, test, far[:, k] - far[:, k - 1] > 1e-9


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("name", list(REAL))
def test_real_data_equals_scikit_learn(name, distance):
    feats, labels = REAL[name]()
    feats = feats.astype(np.float32).astype(np.float64)
    for k, temperature in ((1, None), (5, None), (20, 0.07)):
        train, test, clear = settled(feats, k, distance)
        assert clear.mean() > 0.8

        def weights(d, t=temperature):
            near = 1 - d if distance == "cosine" else -d
            return np.exp((near - near.max(1, keepdims=True)) / t)

        votes = "uniform" if temperature is None else weights
        model = KNeighborsClassifier(k, metric=distance, algorithm="brute", weights=votes)
        expected = model.fit(train, labels[::2]).predict(test)
        got = knn_predict(train.astype(np.float32), labels[::2], test, k, temperature, distance)
        assert got[clear].tolist() == expected[clear].tolist()


def _clustered(rng, offset=0.0, spread=1.0, scale=1.0):
    centres = rng.randn(6, 48) * 2
    groups = rng.randint(0, 6, 1600)
    feats = (centres[groups] + spread * rng.randn(1600, 48)) * scale + offset
    return feats.astype(np.float32), groups


def _duplicates(rng):
    feats, labels = _clustered(rng)
    feats[800:1400] = feats[:600]
    return feats, labels


def _one_ulp(rng):
    base = rng.randn(48).astype(np.float32)
    steps = rng.randint(-3, 4, (1600, 48)).astype(np.float32)
    return base + steps * np.spacing(base), rng.randint(0, 5, 1600)


def _64_ulp(rng):
    base = rng.randn(48).astype(np.float32)
    steps = rng.randint(-3, 4, (1600, 48)).astype(np.float32)
    return base + steps * 64 * np.spacing(base), rng.randint(0, 5, 1600)


def _outliers(rng):
    feats, labels = _clustered(rng)
    feats[::50] *= 1e6
    feats[7::50] *= 1e-6
    return feats, labels


ADVERSARIAL = {
    "duplicates": _duplicates,
    "one ulp apart": _one_ulp,
    "64 ulp apart": _64_ulp,
    "offset 1e4": lambda rng: _clustered(rng, offset=1e4),
    "tight clusters": lambda rng: _clustered(rng, spread=1e-3),
    "huge": lambda rng: _clustered(rng, scale=1e30),
    "tiny": lambda rng: _clustered(rng, scale=1e-30),
    "outliers": _outliers,
}


@pytest.mark.parametrize(
    ("name", "distance"),
    # Cosines of points 1 ulp of float32 apart differ by less than float64 resolves.
    [
        (n, d)
        for n in ADVERSARIAL
        for d in ("cosine", "euclidean")
        if (n, d) != ("one ulp apart", "cosine")
    ],
)
def test_adversarial_data_equals_brute_force_and_scikit_learn(name, distance, brute_force):
    feats, labels = ADVERSARIAL[name](np.random.RandomState(5))
    train, test = feats[:1500], feats[1500:]
    expected = brute_force(train, labels[:1500], test, 7, None, distance)
    assert knn_predict(train, labels[:1500], test, 7, None, distance).tolist() == expected
    wide = feats.astype(np.float64)
    if name in ("huge", "tiny"):  # scikit-learn's distances lose these numbers
        wide /= np.abs(wide).max()
    # scikit-learn's brute force expands the square, which cancels.
    algorithm = "kd_tree" if distance == "euclidean" else "brute"
    model = KNeighborsClassifier(8, metric=distance, algorithm=algorithm)
    far = model.fit(wide[:1500], labels[:1500]).kneighbors(wide[1500:])[0]
    clear = far[:, 7] - far[:, 6] > 1e-6 * far[:, 6] + 1e-12
    model = KNeighborsClassifier(7, metric=distance, algorithm=algorithm)
    theirs = model.fit(wide[:1500], labels[:1500]).predict(wide[1500:])
    assert np.array_equal(theirs[clear], np.array(expected)[clear])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_short_and_integer_features_are_taken_as_they_are(dtype):
    generator = torch.Generator().manual_seed(0)
    feats = (torch.rand(700, 24, generator=generator) * 100).to(dtype)
    for distance in ("cosine", "euclidean"):
        wide = nearest_neighbors(feats[:600].double(), feats[600:].double(), 9, distance)
        own = nearest_neighbors(feats[:600], feats[600:], 9, distance)
        assert torch.equal(own[1], wide[1])


SHORT = candidates.Form(torch.bfloat16, torch.bfloat16)
HELD = candidates.Form(torch.bfloat16, torch.float32)
SINGLE = candidates.Form(torch.float32, torch.float32)
DOUBLE = candidates.Form(torch.float64, torch.float64)


@pytest.mark.parametrize("form", [SHORT, HELD, SINGLE, DOUBLE])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_candidates_hold_the_neighbors_and_few_others(form, distance):
    rng = np.random.RandomState(2)
    train, test = torch.tensor(rng.randn(6000, 64)).float(), torch.tensor(rng.randn(50, 64)).float()
    space = candidates.Space(train, test, distance, torch.device("cpu"))
    found = candidates.search(space, train, test, 10, 200, form)
    assert found.complete.all()
    near = nearest_neighbors(train, test, 10, distance)[1]
    for row in range(50):
        start = int(found.start[row])
        columns = found.column[start : start + int(found.count[row])].tolist()
        assert set(near[row].tolist()) <= set(columns)
    assert found.count.double().mean() < (40 if form.rounded == torch.bfloat16 else 11)


@pytest.mark.parametrize("forms", [[SHORT, DOUBLE], [HELD, DOUBLE], [SINGLE, DOUBLE], [DOUBLE]])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_random_data_equals_brute_force_with_every_form(forms, distance, monkeypatch, brute_force):
    monkeypatch.setattr(candidates, "forms", lambda device: forms)
    monkeypatch.setattr(candidates, "_CHUNK", 256)
    rng = np.random.RandomState(8)
    for _ in range(5):
        count, width, k = rng.randint(30, 2500), rng.randint(1, 90), rng.randint(1, 30)
        feats = rng.randn(count + 25, width).astype(np.float32)
        labels = rng.randint(0, 7, count)
        train, test = feats[:count], feats[count:]
        for temperature in (None, 0.5):
            expected = brute_force(train, labels, test, k, temperature, distance)
            assert knn_predict(train, labels, test, k, temperature, distance).tolist() == expected


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_left_as_they_are(distance, dtype):
    train, test = torch.ones(400, 6, dtype=dtype), torch.zeros(9, 6, dtype=dtype) + 0.5
    before = train.clone(), test.clone()
    nearest_neighbors(train, test, 3, distance)
    assert torch.equal(train, before[0])
    assert torch.equal(test, before[1])


def test_memory_does_not_grow_with_the_training_set(tmp_path):
    """Peak memory beyond the features, of processes with 10,000 and 80,000 training points."""
    script = """
import re, resource, sys, torch
from solo_minent.evaluation.knn import nearest_neighbors
torch.set_num_threads(1)
count = int(sys.argv[1])
generator = torch.Generator().manual_seed(0)
train, test = torch.empty(count, 128), torch.empty(2000, 128)
for part in (*train.split(1000), *test.split(1000)):
    part.normal_(generator=generator)
nearest_neighbors(train[:3000], test[:300], 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_neighbors(train, test, 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    few, many = (
        float(subprocess.check_output([sys.executable, "-c", script, str(n)], text=True))
        for n in (10_000, 80_000)
    )
    # 70,000 points more are 34 MiB of features, and a matrix of their distances 1,068 MiB.
    assert many < few + 20
