"""TWIST: twin class distribution estimation.

Paper: Wang, Kong, Zhang, Liu, Li, "Twist", arXiv 2110.07402; IEEE TIP 32 (2023) 2228-2236.
Official code: bytedance/TWIST @ 796d36e.

Logits f come out of an affine-free batch norm. With p = softmax(f), s = softmax(f / tau), natural
logarithms and m = mean of s over the rows of the global batch (one m a view):

    KL(a, b) = mean_rows sum_c a (ln(a + eps) - ln(b + eps))
    consistency = 1/2 [ KL(p_1, p_2) + KL(p_2, p_1) ]
    sharpness   = 1/2 sum_v mean_rows -sum_c s_v ln(s_v + eps)              (minimised)
    diversity   = 1/2 sum_v -sum_c m_v ln(m_v + eps)                        (maximised)
    loss = consistency + (1 + lam1) sharpness - lam2 diversity

No stop-gradient. lam1 is an offset: the paper's alpha = 1 + lam1 (ViT: lam1 = -0.6), beta = lam2.
As in the official code, tau enters KL only with a teacher. At lam1 = 0, consistency + sharpness is
the symmetric cross-entropy; diversity lies in [0, ln C], so loss >= -lam2 ln C, up to eps.

Deviations: on W ranks the official values are W times larger, and diversity shifted by W ln W
(in-place all-reduce SUM); the gradient after DDP's average is the same. In the self-labelling
stage, threshold and masked means are those of the global batch, so that any number of ranks trains
as one (the original takes local ones), and tau enters both the threshold and the mask it is
compared with (the original: the threshold only). Probabilities and logarithms are float32 or
wider, under autocast too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_minent.distributed import gather, global_mean, world_size
from solo_minent.errors import UserError
from solo_minent.losses._inputs import (
    autocast_off,
    check_batch,
    check_list,
    check_positive,
    first_derivative_only,
    full_precision,
)


def twist_loss_func(
    f1: Tensor,
    f2: Tensor,
    lam1: float = 0.0,
    lam2: float = 1.0,
    tau: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """TWIST loss of two views.

    Args:
        f1 (Tensor): (B, C) logits of view 1, after the head's affine-free batch norm.
        f2 (Tensor): (B, C) logits of view 2.
        lam1 (float): the weight of sharpness is 1 + lam1.
        lam2 (float): weight of diversity.
        tau (float): temperature of sharpness and diversity, > 0.
        eps (float): added to probabilities inside logarithms, > 0.

    Returns:
        Tensor: scalar, float32 or wider.

    Raises:
        UserError: shapes that differ, fewer than two rows in total, tau or eps not positive.
    """
    return _total(twist_loss_terms(f1, f2, tau, eps), lam1, lam2)


def twist_loss_terms(
    f1: Tensor, f2: Tensor, tau: float = 1.0, eps: float = 1e-5
) -> dict[str, Tensor]:
    """The terms of `twist_loss_func`: {"consistency", "sharpness", "diversity"}.

    loss = consistency + (1 + lam1) * sharpness - lam2 * diversity.
    """
    check_batch("twist_loss_func", f1=f1, f2=f2)
    return twist_multicrop_loss_terms([f1, f2], 2, tau, eps)


def twist_multicrop_loss_func(
    logits: Sequence[Tensor],
    num_large: int = 2,
    lam1: float = 0.0,
    lam2: float = 1.0,
    tau: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """Mean of `twist_loss_func` over the pairs (i, j), i < num_large, i < j: no local-local pair.

    Args:
        logits (Sequence[Tensor]): one (B, C) a view, large crops first.
        num_large (int): number of large crops, from 1 to the number of views.
        lam1, lam2, tau, eps: as in `twist_loss_func`.

    Returns:
        Tensor: scalar, float32 or wider.

    Raises:
        UserError: as `twist_loss_func`, fewer than two views, num_large out of range.
    """
    return _total(twist_multicrop_loss_terms(logits, num_large, tau, eps), lam1, lam2)


def twist_multicrop_loss_terms(
    logits: Sequence[Tensor], num_large: int = 2, tau: float = 1.0, eps: float = 1e-5
) -> dict[str, Tensor]:
    """The terms of `twist_multicrop_loss_func`, each the mean over its pairs."""
    name = "twist_multicrop_loss_func"
    views = check_list(name, "logits", logits, at_least=2)
    rows, _ = check_batch(name, **{f"logits[{i}]": f for i, f in enumerate(views)})
    check_positive(name, tau=tau, eps=eps)
    n = len(views)
    if not isinstance(num_large, int) or not 1 <= num_large <= n:
        raise UserError(
            f"{name}: num_large out of range: {num_large!r}. 1 to {n} for {n} views is allowed. "
            "Count the large crops, which come first."
        )
    with autocast_off(views[0].device):
        views = full_precision(*views)
        divergence, entropies, means = _SoftmaxTerms.apply(num_large, eps, *views)
        if tau != 1:
            views = [f / tau for f in views]
            _, entropies, means = _SoftmaxTerms.apply(num_large, eps, *views)
        # With every view at both ends, large crop i pairs with all n - 1 others, a local with the
        # num_large large ones.
        ends = [n - 1 if i < num_large else num_large for i in range(n)]
        pairs = sum(ends) // 2
        weights = torch.tensor(ends, dtype=means.dtype) / (2 * pairs)
        weights = weights.to(means.device, non_blocking=True)
        return _reduce(divergence / (2 * pairs * rows), entropies / rows, means, weights, eps)


def twist_teacher_loss_func(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    lam1: float = 0.0,
    lam2: float = 1.0,
    tau: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """TWIST with a momentum encoder (the paper's ViT recipes).

    consistency = mean over pairs (t, s), s != t, of KL(teacher_t || student_s), with tau in both;
    sharpness and diversity = plain means over all student views.

    Args:
        student_logits (Sequence[Tensor]): one (B, C) a view, the teacher's views first.
        teacher_logits (Sequence[Tensor]): (B, C) of the large crops in that order; detached here.
        lam1, lam2, tau, eps: as in `twist_loss_func`.

    Returns:
        Tensor: scalar, float32 or wider.

    Raises:
        UserError: as `twist_loss_func`, fewer than two student views, more teacher than student
        views.
    """
    return _total(twist_teacher_loss_terms(student_logits, teacher_logits, tau, eps), lam1, lam2)


def twist_teacher_loss_terms(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    tau: float = 1.0,
    eps: float = 1e-5,
) -> dict[str, Tensor]:
    """The terms of `twist_teacher_loss_func`."""
    name = "twist_teacher_loss_func"
    students = check_list(name, "student_logits", student_logits, at_least=2)
    teachers = check_list(name, "teacher_logits", teacher_logits, at_least=1)
    rows, _ = check_batch(
        name,
        **{f"student_logits[{i}]": f for i, f in enumerate(students)},
        **{f"teacher_logits[{i}]": f for i, f in enumerate(teachers)},
    )
    check_positive(name, tau=tau, eps=eps)
    n, n_teacher = len(students), len(teachers)
    if n_teacher > n:
        raise UserError(
            f"{name}: more teacher than student views: {n_teacher} and {n}. The student sees every "
            "view of the teacher. Pass the large crops to both."
        )
    with autocast_off(students[0].device):
        views = full_precision(*students, *(t.detach() for t in teachers))
        s, log_s = _softmax_log(torch.stack(views[:n]) / tau, eps)
        q, log_q = _softmax_log(torch.stack(views[n:]) / tau, eps)
        divergence = torch.stack(
            [
                (q[t] * (log_q[t] - log_s[v])).sum()
                for t in range(n_teacher)
                for v in range(n)
                if v != t
            ]
        )
        entropies = -(s * log_s).sum(dim=(1, 2)) / rows
        weights = s.new_full((n,), 1 / n)
        return _reduce(divergence.mean() / rows, entropies, s.mean(dim=1), weights, eps)


def twist_self_label_loss_func(
    logits: Sequence[Tensor],
    quantile: float,
    tau: float = 1.0,
    teacher_logits: Sequence[Tensor] | None = None,
) -> Tensor:
    """TWIST's second stage: cross-entropy with the confident hard labels of the surer large crop.

    A sample's confidence is the larger of its two large crops' highest probabilities; the weak
    view is the surer of the two (a tie: the second) and gives the label, the strong view is the
    other one. With k = int(quantile * global batch), the samples more confident than entry k + 1
    of the global batch, in descending order, take part: k of them unless confidences tie.

        loss = [ CE(strong) + sum_locals CE(local) ] / (views - 1)    each a mean over those samples

    Args:
        logits (Sequence[Tensor]): one (B, C) a view, the two large crops first.
        quantile (float): part of the batch that is labelled, in (0, 1); 0.5 -> 0.6 in the paper.
        tau (float): temperature of the confidences, > 0. The cross-entropy has none.
        teacher_logits (Sequence[Tensor] | None): (B, C) of the two large crops; if given, these
            give confidence and label, the student's strong view and locals learn.

    Returns:
        Tensor: scalar, float32 or wider; the weak view gets no gradient. Zero, with a graph, when
        no sample is selected.

    Raises:
        UserError: as `twist_loss_func`, fewer than two views, quantile outside (0, 1),
        teacher_logits that are not two.
    """
    name = "twist_self_label_loss_func"
    students = check_list(name, "logits", logits, at_least=2)
    teachers = []
    if teacher_logits is not None:
        teachers = check_list(name, "teacher_logits", teacher_logits, at_least=2)
        if len(teachers) != 2:
            raise UserError(
                f"{name}: teacher_logits are of {len(teachers)} views. "
                "Exactly two are expected. Pass the teacher's output for the two large crops."
            )
    rows, _ = check_batch(
        name,
        **{f"logits[{i}]": f for i, f in enumerate(students)},
        **{f"teacher_logits[{i}]": f for i, f in enumerate(teachers)},
    )
    check_positive(name, tau=tau)
    if not 0 < quantile < 1:
        raise UserError(
            f"{name}: quantile out of range: {quantile}. A number in (0, 1) is allowed. "
            "The paper raises it from 0.5 to 0.6."
        )
    with autocast_off(students[0].device), torch.no_grad():
        anchors = torch.stack(full_precision(*(teachers or students[:2])))
        confidence, label = (anchors / tau).softmax(dim=-1).max(dim=-1)
        first_is_weak = confidence[0] > confidence[1]
        target = torch.where(first_is_weak, label[0], label[1])
        confidence = confidence.amax(dim=0)
        everyone = gather(confidence)
        total = everyone.shape[0]
        threshold = everyone.sort(descending=True).values[min(int(quantile * total), total - 1)]
        selected = confidence > threshold
        count = (everyone > threshold).sum().clamp_min(1)
    with autocast_off(students[0].device):
        f = full_precision(*students)
        strong = torch.where(first_is_weak[:, None], f[1], f[0])
        learners = torch.stack([strong, *f[2:]])
        views = learners.shape[0]
        cross_entropy = F.cross_entropy(
            learners.flatten(0, 1), target.repeat(views), reduction="none"
        ).view(views, rows)
        masked = torch.where(selected, cross_entropy, 0.0).sum()
        # global_mean divides by W; the count is already global.
        return global_mean(masked * (world_size() / views) / count)


def _total(terms: dict[str, Tensor], lam1: float, lam2: float) -> Tensor:
    return terms["consistency"] + (1 + lam1) * terms["sharpness"] - lam2 * terms["diversity"]


def _softmax_log(f: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    p = f.softmax(dim=-1)
    return p, (p + eps).log()


class _SoftmaxTerms(torch.autograd.Function):
    """What the loss needs of p = softmax(f), with l = ln(p + eps), for V views f (B, C).

    Returns the sum over pairs (i, j), i large, i < j, of KL(p_i, p_j) + KL(p_j, p_i), which is
    (p_i - p_j)(l_i - l_j): one product, no cancellation; the entropy of each view, summed over its
    rows, (V,); the mean of p over the rows, (V, C).

    p and l are all that is kept. Their gradients, of which autograd makes a tensor each, are
    gathered view by view in place.
    """

    @staticmethod
    def forward(
        ctx: Any, num_large: int, eps: float, *views: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = [f.softmax(dim=-1) for f in views]
        log_p = [(own + eps).log_() for own in p]
        ctx.num_large, ctx.eps = num_large, eps
        divergence = sum(
            (p[i] - p[j]).mul_(log_p[i] - log_p[j]).sum()
            for i in range(num_large)
            for j in range(i + 1, len(p))
        )
        entropies = -torch.stack([(own * log).sum() for own, log in zip(p, log_p, strict=True)])
        ctx.save_for_backward(*p, *log_p, entropies)
        return divergence, entropies, torch.stack([own.mean(dim=0) for own in p])

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, of_divergence: Tensor, of_entropies: Tensor, of_means: Tensor
    ) -> tuple[Tensor | None, ...]:
        *kept, _ = ctx.saved_tensors
        views = len(kept) // 2
        p, log_p = kept[:views], kept[views:]
        # A local's partners are the large crops, a large crop's all views but itself: with itself
        # in the sum as well, its own terms count once more.
        partners = {n: (sum(p[:n]), sum(log_p[:n])) for n in (views, ctx.num_large)}
        grads = []
        for v, (own, log) in enumerate(zip(p, log_p, strict=True)):
            count = views if v < ctx.num_large else ctx.num_large
            others, log_others = partners[count]
            scale = of_divergence * count - of_entropies[v]
            # of the pairs: sum_j (l_v - l_j) + (p_v - p_j) / (p_v + eps)
            grad = (own * scale).addcmul_(others, -of_divergence).div_(own + ctx.eps)
            grad.addcmul_(log, scale).addcmul_(log_others, -of_divergence)
            grad.add_(of_means[v] / len(own))
            grad.sub_((grad * own).sum(dim=-1, keepdim=True))  # through the softmax
            grads.append(grad.mul_(own))
        return None, None, *grads


def _reduce(
    consistency: Tensor, entropies: Tensor, means: Tensor, weights: Tensor, eps: float
) -> dict[str, Tensor]:
    """Terms of the global batch in one collective.

    Args:
        consistency (Tensor): local mean.
        entropies (Tensor): (views,) local means over the rows.
        means (Tensor): (views, C) local means of the probabilities.
        weights (Tensor): (views,) weights of the views in sharpness and diversity, of sum one.
    """
    packed = torch.cat([torch.stack([consistency, weights @ entropies]), means.flatten()])
    packed = global_mean(packed)
    m = packed[2:].view_as(means)
    diversity = -(weights @ (m * (m + eps).log()).sum(dim=1))
    return {"consistency": packed[0], "sharpness": packed[1], "diversity": diversity}
