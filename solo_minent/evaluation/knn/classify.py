"""kNN classification: votes of the nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from solo_minent.errors import UserError
from solo_minent.evaluation.knn.inputs import check_grid, classes_of, integers, pair
from solo_minent.evaluation.knn.neighbors import nearest_neighbors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_VOTES = 1 << 22  # float64 values held at once


def knn_predict(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    k: int = 20,
    temperature: float | None = 0.07,
    distance: str = "cosine",
    device: str | torch.device | None = None,
) -> Tensor:
    """Predicted labels (T,), int64 on the CPU, of k-nearest-neighbour classification.

    train_feats (N, D), train_labels (N,) integers of any value, test_feats (T, D): tensors or
        arrays.
    k: neighbours; among equal distances the lowest training index comes first.
    temperature: a neighbour votes exp(similarity / temperature) (Wu et al. 2018, arXiv 1805.01978);
        None: one vote each. Votes that tie go to the smallest label.
    distance: `cosine` (both sides normalised; similarities that steps of at most 4 ulp of 1 join
        are equal; a vector shorter than 1e-150 has similarity 0) or `euclidean` (similarity =
        -distance).
    device: where points are compared; by default where the training features are.

    Raises UserError on sets that are empty, do not match or hold NaN or infinity, on labels that
    are not integers, on k outside 1..N, on a temperature that is not positive.
    """
    key = (k, temperature, distance)
    return knn_grid(train_feats, train_labels, test_feats, [k], [temperature], [distance], device)[
        key
    ]


def knn_grid(
    train_feats: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    ks: Sequence[int],
    temperatures: Sequence[float | None],
    distances: Sequence[str] = ("cosine",),
    device: str | torch.device | None = None,
) -> dict[tuple[int, float | None, str], Tensor]:
    """`knn_predict` for each (k, temperature, distance): one neighbour search for each distance."""
    train, test = pair(train_feats, test_feats)
    labels, classes = classes_of(train_labels, len(train))
    check_grid(ks, temperatures, distances, len(train))
    out = {}
    for distance in distances:
        similarity, index = nearest_neighbors(train, test, max(ks), distance, device)
        near = labels[index]
        for k in ks:
            for temperature in temperatures:
                votes = _vote(similarity[:, :k], near[:, :k], len(classes), temperature)
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
    device: str | torch.device | None = None,
) -> float:
    """Share of test points in [0, 1] that `knn_predict` gets right."""
    predicted = knn_predict(train_feats, train_labels, test_feats, k, temperature, distance, device)
    return accuracy(predicted, integers(test_labels, len(predicted), "test"))


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
    train, test = pair(train_feats, test_feats)
    labels, classes = classes_of(train_labels, len(train))
    truth = integers(test_labels, len(test), "test")
    members = [torch.nonzero(labels == c).flatten() for c in range(len(classes))]
    rarest = min(range(len(classes)), key=lambda c: len(members[c]))
    if len(members[rarest]) < shots:
        raise UserError(
            f"too few images for {shots} shots: class {int(classes[rarest])} has "
            f"{len(members[rarest])}. Each class needs at least that many. Lower shots."
        )
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for _ in range(trials):
        drawn = [m[torch.randperm(len(m), generator=generator)[:shots]] for m in members]
        chosen = torch.cat(drawn).sort().values
        points = train[chosen.to(train.device)]
        predicted = knn_predict(points, classes[labels[chosen]], test, 1, None, distance)
        shares.append(accuracy(predicted, truth))
    return float(np.mean(shares)), float(np.std(shares))


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of equal labels, in [0, 1]."""
    return (predicted == truth).double().mean().item()


def _vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Class numbers (T,): the first class with the largest vote."""
    out = torch.empty(len(labels), dtype=torch.int64)
    step = max(1, _VOTES // classes)
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
