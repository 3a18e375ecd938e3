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
more nodes); traces come from tr(C^(a+b)) = <C^a, (C^b)^T> and the gradient from the same powers, so
that order 4 costs one product besides C and one more backward, and C is (m, m) or (d, d), whichever
is smaller: tr((p z^T)^k) = tr((z^T p)^k). Same value. Everything runs in float32 or wider, under
autocast too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solo_minent.distributed import gather_packed
from solo_minent.errors import UserError
from solo_minent.losses._inputs import (
    autocast_off,
    check_batch,
    check_positive,
    first_derivative_only,
    full_precision,
    unit_rows,
)


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
        rows = [unit_rows(x) for x in full_precision(z1, z2, p1.detach(), p2.detach())]
        z1, z2, p1, p2 = gather_packed(*rows)
        traces = _PowerTraces.apply(p1, z2, lamda_inv, order)
        traces = traces + _PowerTraces.apply(p2, z1, lamda_inv, order)
        scale = -lamda_inv / (2 * z1.shape[0])
        return {
            f"order_{k}": trace * (scale * (-1) ** (k + 1) / k)
            for k, trace in enumerate(traces.unbind(), start=1)
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


class _PowerTraces(torch.autograd.Function):
    """tr(C^k) for k = 1..order, as (order,); C = p z^T / lamda_inv or z^T p / lamda_inv.

    With a_k = k * (gradient of tr(C^k)), the gradient of z is P p / lamda_inv, or p P^T / lamda_inv
    for the second, where P = sum_k a_k C^(k-1): of the powers up to half the order, which the
    forward pass has made already, P takes one more product, where autograd takes two for each.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, z: Tensor, lamda_inv: float, order: int) -> Tensor:
        ctx.lamda_inv, ctx.order = lamda_inv, order
        if order == 1:
            traces = ((p * z).sum() / lamda_inv)[None]
            ctx.save_for_backward(p, traces)
            return traces
        m, d = p.shape
        ctx.by_features = d < m
        pair = (p.T, z) if ctx.by_features else (p, z.T)
        powers = [torch.addmm(p.new_zeros(()), *pair, beta=0, alpha=1 / lamda_inv)]
        while len(powers) < (order + 1) // 2:
            powers.append(powers[-1] @ powers[0])
        traces = [power.trace() for power in powers]
        for k in range(len(powers) + 1, order + 1):
            traces.append((powers[-1] * powers[k - len(powers) - 1].T).sum())
        traces = torch.stack(traces)
        ctx.save_for_backward(p, *powers, traces)
        return traces

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        p, *powers, _ = ctx.saved_tensors
        with autocast_off(p.device):
            scales = grad * torch.arange(1, ctx.order + 1, device=p.device) / ctx.lamda_inv
            if ctx.order == 1:
                return None, p * scales, None, None
            low, high = scales.split([len(powers), ctx.order - len(powers)])
            polynomial = _polynomial(low, powers)
            if len(high) == 1:
                polynomial.addcmul_(powers[-1], high)
            else:
                polynomial.addmm_(powers[-1], _polynomial(high, powers))
            return None, p @ polynomial.T if ctx.by_features else polynomial @ p, None, None


def _polynomial(scales: Tensor, powers: list[Tensor]) -> Tensor:
    """scales[0] I + scales[1] C + scales[2] C^2 + …"""
    total = torch.zeros_like(powers[0])
    total.diagonal().add_(scales[0])
    for scale, power in zip(scales[1:], powers, strict=False):
        total.addcmul_(power, scale)
    return total
