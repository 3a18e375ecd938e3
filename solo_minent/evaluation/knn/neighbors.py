"""The k nearest training points, exact.

Candidates come from short matrix products that bound each similarity from above (`candidates`).
A matrix product rounds equal pairs differently at different places, so candidates are compared by
a float64 sum of their own. A test point whose candidates may lack a neighbour goes through longer
products, and what even float64 products cannot tell apart is compared with every training point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_minent.evaluation.knn import candidates
from solo_minent.evaluation.knn.candidates import Found, Space
from solo_minent.evaluation.knn.inputs import check_distance, check_k, pair

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_WIDTHS = (4, 32)  # most candidates, times k + 16: of most forms, and of the last
_PAIR_ELEMENTS = 1 << 18  # float64 values held at once when pairs are compared one by one
# Normalised rows are rounded: cosine similarities this near are the same number.
_COSINE_TIE = 4 * torch.finfo(torch.float64).eps
_SMALLEST = 1e-150


def nearest_neighbors(
    train_feats: ArrayLike | Tensor,
    test_feats: ArrayLike | Tensor,
    k: int,
    distance: str = "cosine",
    device: str | torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest training points of each test point, nearest first, equal ones by index.

    train_feats (N, D), test_feats (T, D): tensors or arrays of any real dtype.
    device: where they are compared; by default where the training features are.

    Returns similarity float64 (T, k), cosine or minus the Euclidean distance, and index int64
    (T, k), on the CPU. Memory: O(T (D + k)) and fixed chunks besides the features, and 8 bytes a
    training point.
    Raises UserError as `knn_predict` does.
    """
    check_distance(distance)
    train, test = pair(train_feats, test_feats)
    check_k(k, len(train))
    device = torch.device(device) if device is not None else train.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        score, index = _search(train, test, k, distance, device)
    if distance == "euclidean":
        score = -(-score).clamp_min(0).sqrt()
    return score, index


def _search(
    train: Tensor, test: Tensor, k: int, distance: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine or minus the squared distance, and index, as `nearest_neighbors`."""
    space = Space(train, test, distance, device)
    score = torch.empty((len(test), k), dtype=torch.float64)
    index = torch.empty((len(test), k), dtype=torch.int64)
    forms = candidates.forms(device)
    left = torch.arange(len(test))
    for form, times in [*((form, _WIDTHS[0]) for form in forms), (forms[-1], _WIDTHS[1])]:
        points = test if len(left) == len(test) else test[left.to(test.device)]
        found = candidates.search(space, train, points, k, times * (k + 16), form)
        done, *best = _rank(train, points, found, k, distance, device)
        score[left[done]], index[left[done]] = best
        left = left[~done]
        if not len(left):
            return score, index
    # Collapsed features make every point unsure and equal: look at each kind once.
    kinds, which = torch.unique(test[left.to(test.device)], dim=0, return_inverse=True)
    found = _exhaustive(train, kinds, k, distance, device)
    which = which.cpu()
    score[left], index[left] = found[0][which], found[1][which]
    return score, index


def _rank(
    train: Tensor, test: Tensor, found: Found, k: int, distance: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are known for certain, and score and index of those: each pair summed alone."""
    sure = found.complete.clone()
    score = torch.empty((len(test), k), dtype=torch.float64)
    index = torch.empty((len(test), k), dtype=torch.int64)
    # Rows with equally many candidates together.
    order = found.count.argsort()
    order = order[found.complete[order]]
    row = 0
    while row < len(order):
        step = max(1, _PAIR_ELEMENTS // (int(found.count[order[row]]) * train.shape[1]))
        rows = order[row : row + step]
        row += step
        counts = found.count[rows, None]
        place = torch.arange(int(counts.max()), device=device)
        real = place < counts
        chosen = found.column[found.start[rows, None] + place.minimum(counts - 1)]
        pairs = train[chosen.flatten().to(train.device)].to(device, torch.float64)
        scores = _scores(
            test[rows.to(test.device)].to(device, torch.float64)[:, None],
            pairs.view(*chosen.shape, -1),
            distance,
        ).masked_fill_(~real, -torch.inf)
        top, where, worst = _best(scores, chosen, k, distance)
        if distance == "cosine":
            # A chain of equal similarities may go on among points that were left out.
            sure[rows] &= worst - _COSINE_TIE > found.floor[rows]
        score[rows.cpu()], index[rows.cpu()] = top.cpu(), where.cpu()
    sure = sure.cpu()
    return sure, score[sure], index[sure]


def _exhaustive(
    train: Tensor, test: Tensor, k: int, distance: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The best k of all training points, each pair summed on its own."""
    scores = torch.empty((len(test), k), dtype=torch.float64)
    indices = torch.empty((len(test), k), dtype=torch.int64)
    step = max(1, 16 * _PAIR_ELEMENTS // train.shape[1])
    everyone = torch.arange(len(train), device=device)[None]
    for row in range(len(test)):
        left = test[row : row + 1].to(device, torch.float64)
        score = [
            _scores(
                left, train[start : start + step].to(device, torch.float64, copy=True), distance
            )
            for start in range(0, len(train), step)
        ]
        top, index, _ = _best(torch.cat(score)[None], everyone, k, distance)
        scores[row], indices[row] = top[0].cpu(), index[0].cpu()
    return scores, indices


def _scores(left: Tensor, right: Tensor, distance: str) -> Tensor:
    """Cosine, or minus the squared distance, along the last dimension; `right` is overwritten."""
    if distance == "euclidean":
        return -right.sub_(left).square_().sum(-1)
    left = F.normalize(left, dim=-1, eps=_SMALLEST)
    norm = right.norm(dim=-1)
    score = right.mul_(left).sum(-1)
    return torch.where(norm < _SMALLEST, 0.0, score / norm)


def _best(score: Tensor, index: Tensor, k: int, distance: str) -> tuple[Tensor, Tensor, Tensor]:
    """Best k by score, then by index, and the last score that equals the k-th.

    `index` rises along each row.
    """
    score, order = score.sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    worst = score[:, k - 1]
    if distance == "cosine":
        fresh = score[:, :-1] - score[:, 1:] > _COSINE_TIE
        group = F.pad(fresh.long().cumsum(1), (1, 0))
        worst = score.masked_fill(group > group[:, k - 1 : k], torch.inf).amin(1)
        order = (group * (index.max() + 1) + index).argsort(dim=1)
        # Equal similarities become the same number, so that their votes are equal as well.
        first = group.new_zeros(group.shape)
        ranks = torch.arange(1, group.shape[1], device=group.device)
        first[:, 1:] = torch.where(fresh, ranks, 0)
        score = score.gather(1, first.cummax(1).values)
        index = index.gather(1, order)
    return score[:, :k].contiguous(), index[:, :k].contiguous(), worst
