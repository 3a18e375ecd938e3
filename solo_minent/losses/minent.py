"""MinEnt: predict the nearest minimum-entropy distribution of the other view.

Paper: "Minimum Entropy for Self-Supervised Representation Learning".
Official code: LiShuo1001/MinEnt @ d17ed2f.

    t_v = argmax_j norm(g_v)_ij        norm acts on every output unit over the batch
    L_k = 1/2 [ CE(g_1, t_2) + CE(g_2, t_1) ]        for head k, on the raw logits
    L   = mean_k L_k

The one-hot target t_v is the zero-entropy distribution nearest to sample i's. Normalising each unit
over the batch lets every unit win for some samples, which keeps the whole code book in use; with
norm="none" the targets, and then the representation, collapse. Watch `target_entropy`.

Deviations: on several ranks the statistics of `norm` are those of the global batch (the original is
single-device); "bn" keeps no running statistics, which nothing reads, and no affine parameters,
which get no gradient through argmax; "softmax" compares logits in the log domain, the same order
without underflow. Targets are computed in float32 at least: ties multiply in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_minent.distributed import (
    global_max,
    global_mean,
    global_sum,
    is_distributed,
    world_size,
)
from solo_minent.errors import UserError
from solo_minent.losses._inputs import autocast_off, check_batch, check_list, full_precision

NORMS = ("bn", "softmax", "l2", "none")

# torch's defaults for BatchNorm1d and F.normalize, which the official code uses.
_BN_EPS = 1e-5
_L2_EPS = 1e-12

Heads = Tensor | Sequence[Tensor]


def minent_loss_func(g1: Heads, g2: Heads, norm: str = "bn") -> Tensor:
    """MinEnt loss of two views.

    Args:
        g1 (Tensor | Sequence[Tensor]): logits (B, d) of view 1, or a list of them, one a head; the
            widths d may differ between heads.
        g2 (Tensor | Sequence[Tensor]): logits of view 2, shaped like `g1`.
        norm (str): "bn" (standardise over the batch), "softmax" or "l2" over the batch, "none".

    Returns:
        Tensor: scalar, float32 or wider; the mean over heads.

    Raises:
        UserError: unknown norm, views or heads that do not fit, fewer than two rows in total.
    """
    terms = minent_loss_terms(g1, g2, norm)
    return torch.stack(list(terms.values())).mean()


def minent_loss_terms(
    g1: Heads,
    g2: Heads,
    norm: str = "bn",
    targets: tuple[list[Tensor], list[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The loss of every head, {"head_0": L_0, ...}: the loss is their mean.

    Args and errors: as `minent_loss_func`; targets: `minent_targets` of both views where they are
    known already.
    """
    heads1, heads2 = _check_heads("minent_loss_func", norm, g1=g1, g2=g2)
    with autocast_off(heads1[0].device):
        logits1, logits2 = full_precision(*heads1), full_precision(*heads2)
        targets1, targets2 = targets or (_targets(logits1, norm), _targets(logits2, norm))
        losses = [
            (F.cross_entropy(g1, t2) + F.cross_entropy(g2, t1)) / 2
            for g1, t1, g2, t2 in zip(logits1, targets1, logits2, targets2, strict=True)
        ]
        losses = global_mean(torch.stack(losses))
    return {f"head_{k}": loss for k, loss in enumerate(losses.unbind())}


def minent_targets(g: Heads, norm: str = "bn") -> Tensor | list[Tensor]:
    """Hard targets of one view: the winning unit of each row after `norm` over the global batch.

    Args:
        g (Tensor | Sequence[Tensor]): logits (B, d), or a list of them, one a head.
        norm (str): as in `minent_loss_func`.

    Returns:
        Tensor | list[Tensor]: int64 (B,), without gradient; a list when `g` is one. Ties go to the
        first unit.
    """
    (heads,) = _check_heads("minent_targets", norm, g=g)
    with autocast_off(heads[0].device):
        targets = _targets(full_precision(*heads), norm)
    return targets[0] if isinstance(g, Tensor) else targets


@torch.no_grad()
def target_entropy(targets: Tensor | Sequence[Tensor], num_classes: int | Sequence[int]) -> Tensor:
    """Entropy of the targets over the global batch: 0 at collapse, ln(num_classes) at most.

    Args:
        targets (Tensor | Sequence[Tensor]): int64 class indices, any shape; or a list, one a head.
        num_classes (int | Sequence[int]): number of classes, one for each entry of such a list.

    Returns:
        Tensor: float32, in nats: a scalar, or (heads,) for a list (one collective for all heads).
    """
    single = isinstance(targets, Tensor)
    heads = [targets] if single else list(targets)
    widths = [num_classes] if isinstance(num_classes, int) else list(num_classes)
    if not heads or len(heads) != len(widths) or min(widths) < 1:
        raise UserError(
            f"target_entropy: {len(heads)} target tensor(s) for num_classes {num_classes}. "
            "One positive number of classes for each is expected. Pass the head's output width."
        )
    if any(t.numel() == 0 or t.is_floating_point() for t in heads):
        raise UserError(
            "target_entropy: targets are empty or not integers: "
            f"{[(tuple(t.shape), str(t.dtype)) for t in heads]}. "
            "Class indices are expected. Pass what minent_targets returns."
        )
    counts = [_histogram(t, width) for t, width in zip(heads, widths, strict=True)]
    counts = global_sum(torch.cat(counts)).split(widths)
    entropy = torch.stack([torch.special.entr(c / c.sum()).sum() for c in counts])
    return entropy[0] if single else entropy


def _histogram(targets: Tensor, num_classes: int) -> Tensor:
    # Not bincount: it synchronises with the device to find the largest index.
    flat = targets.reshape(-1).long()
    ones = torch.ones_like(flat, dtype=torch.float32)
    return ones.new_zeros(num_classes).scatter_add_(0, flat, ones)


def _check_heads(name: str, norm: str, **views: Heads) -> list[list[Tensor]]:
    if norm not in NORMS:
        raise UserError(
            f"{name}: unknown norm: {norm!r}. Allowed: {', '.join(NORMS)}. "
            "Set method_kwargs.norm to one of them."
        )
    heads = [
        [g] if isinstance(g, Tensor) else check_list(name, key, g, at_least=1)
        for key, g in views.items()
    ]
    if len({len(h) for h in heads}) > 1:
        raise UserError(
            f"{name}: the views differ in their number of heads: {[len(h) for h in heads]}. "
            "One logits tensor a head is expected in every view. Use the same heads for both."
        )
    rows = set()
    for k in range(len(heads[0])):
        suffix = f"[{k}]" if len(heads[0]) > 1 else ""
        entries = {f"{key}{suffix}": h[k] for key, h in zip(views, heads, strict=True)}
        rows.add(check_batch(name, **entries)[0])
    if len(rows) > 1:
        raise UserError(
            f"{name}: the heads differ in batch size: {sorted(rows)}. "
            "All heads see the same batch. Apply every head to the same features."
        )
    return heads


@torch.no_grad()
def _targets(heads: list[Tensor], norm: str) -> list[Tensor]:
    """Targets (B,) of every head (B, d_k)."""
    return [x.argmax(dim=1) for x in _normalise(heads, norm)]


def _normalise(heads: list[Tensor], norm: str) -> list[Tensor]:
    """`norm` of every column over the rows of all ranks (for softmax, its logarithm)."""
    if norm == "bn" and not is_distributed():
        return [F.batch_norm(x, None, None, training=True, eps=_BN_EPS) for x in heads]
    if norm == "l2" and not is_distributed():
        return [F.normalize(x, dim=0, eps=_L2_EPS) for x in heads]
    if norm == "bn":
        rows = heads[0].shape[0] * world_size()
        means = _packed(global_sum, [x.sum(dim=0) / rows for x in heads])
        centred = [x - mean for x, mean in zip(heads, means, strict=True)]
        # Second pass: the one-pass E[x^2] - E[x]^2 cancels.
        variances = _packed(global_sum, [x.square().sum(dim=0) / rows for x in centred])
        scales = [(variance + _BN_EPS).rsqrt() for variance in variances]
        return [x.mul_(scale) for x, scale in zip(centred, scales, strict=True)]
    if norm == "softmax":
        tops = _packed(global_max, [x.amax(dim=0) for x in heads])
        shifted = [x - top for x, top in zip(heads, tops, strict=True)]
        sums = _packed(global_sum, [x.exp().sum(dim=0) for x in shifted])
        return [x.sub_(total.log()) for x, total in zip(shifted, sums, strict=True)]
    if norm == "l2":
        squares = _packed(global_sum, [x.square().sum(dim=0) for x in heads])
        lengths = [square.sqrt().clamp_min(_L2_EPS) for square in squares]
        return [x / length for x, length in zip(heads, lengths, strict=True)]
    return heads


def _packed(collective: Callable[[Tensor], Tensor], xs: list[Tensor]) -> Sequence[Tensor]:
    """One collective for all heads."""
    return collective(torch.cat(xs)).split([len(x) for x in xs])
