"""k nearest neighbours on frozen features, exact.

The candidates come from matrix products in float64, chunk by chunk, with a running top-k. A matrix
product rounds equal pairs differently at different places, so the candidates are then compared by
a sum of their own, and a test point whose candidates may not hold all its neighbours is compared
with every training point that way. float64 throughout: float32 products may silently run in TF32
or bfloat16 (`torch.set_float32_matmul_precision`) and would need the same second look more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DISTANCES = ("cosine", "euclidean")
_TRAIN_CHUNK, _TEST_CHUNK = 16384, 1024
_SPARE = 16  # candidates beyond k
_PAIR_ELEMENTS = 1 << 22  # float64 values held at once when pairs are compared one by one
_EPS = torch.finfo(torch.float64).eps
# Normalised rows are rounded: cosine similarities this near are the same number.
_COSINE_TIE = 4 * _EPS
_LARGEST = 1e140  # sums of squares stay finite


def knn_predict(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    k: int = 20,
    temperature: float | None = 0.07,
    distance: str = "cosine",
) -> Tensor:
    """Predicted labels (T,), int64 on the CPU, of k-nearest-neighbour classification.

    train_feats (N, D), train_labels (N,) integers of any value, test_feats (T, D): tensors or
        arrays.
    k: neighbours; among equal distances the lowest training index comes first.
    temperature: a neighbour votes exp(similarity / temperature) (Wu et al. 2018, arXiv 1805.01978);
        None: one vote each. Votes that tie go to the smallest label.
    distance: `cosine` (both sides normalised; similarities within 4 ulp of 1 are equal; the zero
        vector has similarity 0) or `euclidean` (similarity = -distance).

    Raises UserError on sets that are empty, do not match or hold NaN or infinity, on labels that
    are not integers, on k outside 1..N, on a temperature that is not positive.
    """
    key = (k, temperature, distance)
    grid = knn_grid(train_feats, train_labels, test_feats, [k], [temperature], [distance])
    return grid[key]


def knn_grid(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    ks: Sequence[int],
    temperatures: Sequence[float | None],
    distances: Sequence[str] = ("cosine",),
) -> dict[tuple[int, float | None, str], Tensor]:
    """`knn_predict` for each (k, temperature, distance): one neighbour search for each distance."""
    if not len(ks) or not len(temperatures) or not len(distances):
        raise UserError("an empty kNN grid: no k, temperature or distance. Give at least one each.")
    for temperature in temperatures:
        number = isinstance(temperature, Real) and not isinstance(temperature, bool)
        if temperature is not None and not (number and 0 < temperature < float("inf")):
            raise UserError(
                f"temperature must be a positive number: {temperature!r}. "
                "None means one vote each. Set temperature=0.07."
            )
    train, test = _features(train_feats, "training"), _features(test_feats, "test")
    labels, classes = _labels(train_labels, len(train))
    for k in ks:
        _check_k(k, len(train))
    out = {}
    for distance in distances:
        similarity, index = nearest_neighbors(train, test, max(ks), distance)
        neighbor_labels = labels[index]
        for k in ks:
            for temperature in temperatures:
                votes = _vote(similarity[:, :k], neighbor_labels[:, :k], len(classes), temperature)
                out[k, temperature, distance] = classes[votes]
    return out


def knn_accuracy(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    test_labels: ArrayLike | Tensor,
    k: int = 20,
    temperature: float | None = 0.07,
    distance: str = "cosine",
) -> float:
    """Share of test points in [0, 1] that `knn_predict` gets right."""
    predicted = knn_predict(train_feats, train_labels, test_feats, k, temperature, distance)
    return _accuracy(predicted, _integers(test_labels, len(predicted), "test"))


def few_shot_1nn(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    test_labels: ArrayLike | Tensor,
    shots: int = 5,
    trials: int = 20,
    seed: int = 0,
    distance: str = "cosine",
) -> tuple[float, float]:
    """1-NN with `shots` labelled images of each class: accuracy over seeded draws.

    Returns the mean and the standard deviation (ddof 0) over `trials` draws, shares in [0, 1].
    Raises UserError as `knn_predict` does, and where a class has fewer than `shots` images.
    """
    for name, value in (("shots", shots), ("trials", trials)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise UserError(f"{name} must be a positive number: {value!r}. Set {name}=5.")
    train, test = _features(train_feats, "training"), _features(test_feats, "test")
    labels, classes = _labels(train_labels, len(train))
    truth = _integers(test_labels, len(test), "test")
    members = [torch.nonzero(labels == c).flatten() for c in range(len(classes))]
    rarest = min(range(len(classes)), key=lambda c: len(members[c]))
    if len(members[rarest]) < shots:
        raise UserError(
            f"too few images for {shots} shots: class {int(classes[rarest])} has "
            f"{len(members[rarest])}. Each class needs at least that many. Lower shots."
        )
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for _ in range(trials):
        drawn = [m[torch.randperm(len(m), generator=generator)[:shots]] for m in members]
        chosen = torch.cat(drawn).sort().values
        predicted = knn_predict(train[chosen], classes[labels[chosen]], test, 1, None, distance)
        accuracies.append(_accuracy(predicted, truth))
    return float(np.mean(accuracies)), float(np.std(accuracies))


def nearest_neighbors(
    train_feats: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    k: int,
    distance: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """The k nearest training points of each test point, nearest first, equal ones by index.

    Returns similarity float64 (T, k), cosine or minus the Euclidean distance, and index int64
    (T, k). Memory: O(T k) besides the features and fixed chunks.
    """
    if distance not in DISTANCES:
        raise UserError(
            f"unknown distance: {distance}. Allowed: {', '.join(DISTANCES)}. Set distance=cosine."
        )
    train, test = _features(train_feats, "training"), _features(test_feats, "test")
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"training and test features differ in width: {train.shape[1]} and {test.shape[1]}. "
            "They must come from one backbone. Extract both again."
        )
    _check_k(k, len(train))
    with torch.no_grad():
        rough, index, radius = _candidates(train, test, min(k + _SPARE, len(train)), distance)
        score, index = _rank_pairs(train, test, index, k, distance)
        if rough.shape[1] < len(train):
            unsure = score[:, -1] - _slack(test, radius, distance) <= rough[:, -1]
            rows = torch.nonzero(unsure).flatten()
            if len(rows):
                # Collapsed features make every row unsure and equal: look at each kind once.
                kinds, which = torch.unique(test[rows], dim=0, return_inverse=True)
                found = _exhaustive(train, kinds, k, distance)
                score[rows], index[rows] = found[0][which], found[1][which]
    if distance == "euclidean":
        score = -(-score).clamp_min(0).sqrt()
    return score, index


def _prepare(feats: Tensor, distance: str) -> Tensor:
    """A chunk in float64; unit rows for cosine."""
    feats = feats.double()
    return F.normalize(feats, dim=1, eps=1e-150) if distance == "cosine" else feats


def _candidates(
    train: Tensor, test: Tensor, count: int, distance: str
) -> tuple[Tensor, Tensor, float]:
    """The `count` best of each test point by matrix product, and the largest training norm.

    The score is the cosine or minus the squared distance.
    """
    best = torch.full((len(test), count), -torch.inf, dtype=torch.float64)
    best_index = torch.zeros((len(test), count), dtype=torch.int64)
    radius = 0.0
    for start in range(0, len(train), _TRAIN_CHUNK):
        right = _prepare(train[start : start + _TRAIN_CHUNK], distance)
        right_square = right.square().sum(1)
        radius = max(radius, right_square.max().sqrt().item())
        for row in range(0, len(test), _TEST_CHUNK):
            rows = slice(row, row + _TEST_CHUNK)
            left = _prepare(test[rows], distance)
            score = left @ right.T
            if distance == "euclidean":
                score.mul_(2).sub_(left.square().sum(1, keepdim=True)).sub_(right_square)
            top, where = score.topk(min(count, len(right)), dim=1)
            merged = torch.cat([best[rows], top], dim=1)
            merged_index = torch.cat([best_index[rows], where + start], dim=1)
            best[rows], keep = merged.topk(count, dim=1)
            best_index[rows] = merged_index.gather(1, keep)
    return best, best_index, radius


def _slack(test: Tensor, radius: float, distance: str) -> Tensor:
    """How far a matrix product and a pair's own sum may differ: twice the classical bound."""
    terms = 2 * (test.shape[1] + 8) * _EPS
    if distance == "cosine":
        return torch.full((len(test),), terms + _COSINE_TIE, dtype=torch.float64)
    return terms * (test.double().norm(dim=1) + radius).square()


def _rank_pairs(
    train: Tensor, test: Tensor, index: Tensor, k: int, distance: str
) -> tuple[Tensor, Tensor]:
    """The best k of the candidates `index` (T, M), each pair summed on its own."""
    index = index.sort(dim=1).values
    score = torch.empty(index.shape, dtype=torch.float64)
    step = max(1, _PAIR_ELEMENTS // (index.shape[1] * train.shape[1]))
    for row in range(0, len(test), step):
        rows = slice(row, row + step)
        left = _prepare(test[rows], distance)[:, None]
        chosen = index[rows]
        right = _prepare(train[chosen.flatten()], distance).view(*chosen.shape, -1)
        score[rows] = _pair_scores(left, right, distance)
    return _best(score, index, k, distance)


def _exhaustive(train: Tensor, test: Tensor, k: int, distance: str) -> tuple[Tensor, Tensor]:
    """The best k of all training points, each pair summed on its own."""
    scores = torch.empty((len(test), k), dtype=torch.float64)
    indices = torch.empty((len(test), k), dtype=torch.int64)
    step = max(1, _PAIR_ELEMENTS // train.shape[1])
    for row in range(len(test)):
        left = _prepare(test[row : row + 1], distance)
        score = torch.cat(
            [
                _pair_scores(left, _prepare(train[start : start + step], distance), distance)
                for start in range(0, len(train), step)
            ]
        )
        everyone = torch.arange(len(train))[None]
        top, index = _best(score[None], everyone, k, distance)
        scores[row], indices[row] = top[0], index[0]
    return scores, indices


def _pair_scores(left: Tensor, right: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return (left * right).sum(-1)
    return -(left - right).square_().sum(-1)


def _best(score: Tensor, index: Tensor, k: int, distance: str) -> tuple[Tensor, Tensor]:
    """Best k by score, then by index; `index` rises along each row."""
    score, order = score.sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    if distance == "cosine":
        fresh = score[:, :-1] - score[:, 1:] > _COSINE_TIE
        group = F.pad(fresh.long().cumsum(1), (1, 0))
        order = (group * (index.max() + 1) + index).argsort(dim=1)
        # Equal similarities become the same number, so that their votes are equal as well.
        first = group.new_zeros(group.shape)
        first[:, 1:] = torch.where(fresh, torch.arange(1, group.shape[1]), 0)
        score = score.gather(1, first.cummax(1).values)
        index = index.gather(1, order)
    return score[:, :k].contiguous(), index[:, :k].contiguous()


def _vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Class numbers (T,): the first class with the largest vote."""
    out = torch.empty(len(labels), dtype=torch.int64)
    step = max(1, _PAIR_ELEMENTS // classes)
    for row in range(0, len(labels), step):
        rows = slice(row, row + step)
        near = similarity[rows]
        if temperature is None:
            weight = torch.ones_like(near)
        else:
            # Relative to the nearest: the winner is the same and exp cannot overflow.
            weight = ((near - near[:, :1]) / temperature).exp()
        votes = near.new_zeros((len(near), classes)).scatter_add_(1, labels[rows], weight)
        out[rows] = votes.argmax(dim=1)
    return out


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    # PyTorch takes neither read-only arrays nor negative strides.
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _features(feats: ArrayLike | Tensor, name: str) -> Tensor:
    tensor = _tensor(feats)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise UserError(
            f"{name} features must be a full (N, D) table: {tuple(tensor.shape)}. "
            "One row an image. Extract them again."
        )
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{name} features must be real numbers: {tensor.dtype}. Convert them.")
    if not tensor.is_floating_point():
        tensor = tensor.double()
    # min and max carry a NaN along, and need no mask of the whole table.
    low, high = (float(v) for v in tensor.aminmax())
    if not (low > -_LARGEST and high < _LARGEST):
        raise UserError(
            f"{name} features hold NaN, infinity or huge values: from {low} to {high}. "
            "The training has probably diverged. Use an earlier checkpoint."
        )
    return tensor


def _labels(labels: ArrayLike | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class numbers (N,) and the sorted labels they stand for."""
    classes, numbers = torch.unique(_integers(labels, count, "training"), return_inverse=True)
    return numbers, classes


def _integers(labels: ArrayLike | Tensor, count: int, name: str) -> Tensor:
    tensor = _tensor(labels)
    if tensor.shape != (count,):
        raise UserError(
            f"{name} labels do not match the features: {tuple(tensor.shape)}. "
            f"Expected ({count},). Give one label an image."
        )
    if tensor.is_floating_point() or tensor.is_complex():
        raise UserError(f"{name} labels must be integers: {tensor.dtype}. Convert them.")
    return tensor.to(torch.int64)


def _check_k(k: int, count: int) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= count:
        raise UserError(
            f"k must be a number of neighbours: {k!r}. Allowed: 1 to {count}, the size of the "
            "training set. Lower k."
        )


def _accuracy(predicted: Tensor, truth: Tensor) -> float:
    return (predicted == truth).double().mean().item()
