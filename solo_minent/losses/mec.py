"""MEC: maximum entropy coding.

Paper: Liu, Wang, Li, Wang, "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022,
arXiv 2210.11464. Official code: xinliu20/MEC @ 35045dc.

The coding length of unit vectors under a distortion, mu * logdet(I + C), is maximised by its Taylor
series, cut at `order` n. With rows of z and p of unit length and m rows in the global batch:

    C(p, z) = p z^T / lamda_inv                                    (m, m)
    T(p, z) = trace( sum_{k=1..n} (-1)^(k+1)/k C^k )  ~ logdet(I + C)
    mec     = 1/2 [ T(p_1, z_2) + T(p_2, z_1) ] / m
    loss    = - lamda_inv * mec            logged coding length = mu * mec,  mu = (m + d) / 2

Order 1 is the SimSiam loss. Use an EVEN order: for odd orders >= 3 total collapse is the minimum.
lamda_inv = m * eps / d, with eps = 64 for d = 2048; keep d / eps for other widths.

Deviations: m is the number of gathered rows (the original takes one node's batch size, wrong on
more nodes); traces come from tr(C^(a+b)) = <C^a, (C^b)^T>, so that order 4 costs one product
besides C, and C is (m, m) or (d, d), whichever is smaller: tr((p z^T)^k) = tr((z^T p)^k). Same
value. Everything runs in float32 or wider, under autocast too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_minent.distributed import gather_packed
from solo_minent.errors import UserError
from solo_minent.losses._inputs import autocast_off, check_batch, check_positive, full_precision


def mec_loss_func(
    z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, lamda_inv: float, order: int = 4
) -> Tensor:
    """MEC loss of two views, the value that is back-propagated.

    Args:
        z1 (Tensor): (B, d) student output (after the predictor) of view 1.
        z2 (Tensor): (B, d) student output of view 2.
        p1 (Tensor): (B, d) teacher output of view 1; detached here.
        p2 (Tensor): (B, d) teacher output of view 2; detached here.
        lamda_inv (float): m * eps / d for m rows in the global batch, > 0.
        order (int): terms of the Taylor series, >= 1.

    Returns:
        Tensor: scalar, float32 or wider.

    Raises:
        UserError: shapes that differ, fewer than two rows in total, order or lamda_inv out of
        range.
    """
    return torch.stack(list(mec_loss_terms(z1, z2, p1, p2, lamda_inv, order).values())).sum()


def mec_loss_terms(
    z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, lamda_inv: float, order: int = 4
) -> dict[str, Tensor]:
    """The Taylor terms, {"order_1": ..., "order_<n>": ...}: the loss is their plain sum.

    Args and errors: as `mec_loss_func`.
    """
    check_batch("mec_loss_func", z1=z1, z2=z2, p1=p1, p2=p2)
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise UserError(
            f"mec_loss_func: order is no positive integer: {order!r}. "
            "1, 2, 4, 6, … are useful (even ones resist collapse). Use order=4."
        )
    check_positive("mec_loss_func", lamda_inv=lamda_inv)
    with autocast_off(z1.device):
        rows = [F.normalize(x) for x in full_precision(z1, z2, p1.detach(), p2.detach())]
        z1, z2, p1, p2 = gather_packed(*rows)
        traces = [_power_traces(p, z, lamda_inv, order) for p, z in ((p1, z2), (p2, z1))]
        scale = -lamda_inv / (2 * z1.shape[0])
        return {
            f"order_{k}": (one + other) * (scale * (-1) ** (k + 1) / k)
            for k, (one, other) in enumerate(zip(*traces, strict=True), start=1)
        }


def mec_coding_length(loss: Tensor, m: int, d: int, lamda_inv: float) -> Tensor:
    """The metric the paper logs as "MEC": coding length per sample, positive, larger is better.

    Args:
        loss (Tensor): what `mec_loss_func` returned.
        m (int): rows of the global batch.
        d (int): width of z and p.
        lamda_inv (float): the value the loss was computed with.

    Returns:
        Tensor: mu * mec = -loss / lamda_inv * (m + d) / 2, without gradient.
    """
    return loss.detach() * (-(m + d) / (2 * lamda_inv))


def _power_traces(p: Tensor, z: Tensor, lamda_inv: float, order: int) -> list[Tensor]:
    """tr(C^k) for k = 1..order, scalars; p and z are (m, d) with unit rows."""
    if order == 1:
        return [(p * z).sum() / lamda_inv]
    m, d = p.shape
    c = (p.T @ z if d < m else p @ z.T) / lamda_inv
    traces, powers = [c.trace()], [c]
    for k in range(2, order + 1):
        half, rest = (k + 1) // 2, k // 2
        if half > len(powers):
            powers.append(powers[-1] @ c)
        traces.append((powers[half - 1] * powers[rest - 1].T).sum())
    return traces
