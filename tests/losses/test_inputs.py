"""Every loss refuses bad input with one UserError line that names the argument."""

from __future__ import annotations

import pytest
import torch

from solo_minent.errors import UserError
from solo_minent.losses import (
    CorInfoMaxLoss,
    mec_loss_func,
    minent_loss_func,
    minent_targets,
    target_entropy,
    twist_loss_func,
    twist_multicrop_loss_func,
    twist_self_label_loss_func,
    twist_teacher_loss_func,
)
from solo_minent.losses._inputs import full_precision

X, OTHER, THIN = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, 2)
ONE, CUBE, INT = torch.zeros(1, 3), torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.long)
NONE = torch.zeros(0, 3)

BAD = {
    # case: (call, a piece of the message)
    "minent views": (lambda: minent_loss_func(X, OTHER), "g1 and g2 differ in shape"),
    "minent widths": (lambda: minent_loss_func([X, X], [X, THIN]), r"g1\[1\] and g2\[1\] differ"),
    "minent ndim": (lambda: minent_loss_func(CUBE, CUBE), "number of dimensions"),
    "minent one row": (lambda: minent_loss_func(ONE, ONE), "batch is too small"),
    "minent no row": (lambda: minent_loss_func(NONE, NONE), "batch is too small"),
    "minent norm": (lambda: minent_loss_func(X, X, "BN"), "unknown norm: 'BN'"),
    "minent heads": (lambda: minent_loss_func([X, X], [X]), "number of heads"),
    "minent head rows": (lambda: minent_loss_func([X, OTHER], [X, OTHER]), "batch size"),
    "minent no head": (lambda: minent_loss_func([], []), "1 or more tensors"),
    "minent type": (lambda: minent_loss_func(X, None), "g2 needs a list"),
    "minent integers": (lambda: minent_loss_func(INT, INT), "no floating-point tensor"),
    "minent targets norm": (lambda: minent_targets(X, "x"), "unknown norm"),
    "entropy count": (lambda: target_entropy([INT, INT], [3]), "target_entropy"),
    "entropy empty": (lambda: target_entropy(INT[:0], 3), "empty or not integers"),
    "entropy floats": (lambda: target_entropy(X, 3), "empty or not integers"),
    "entropy classes": (lambda: target_entropy(INT, 0), "One positive number"),
    "mec views": (lambda: mec_loss_func(X, OTHER, X, X, 8.0), "z1 and z2 differ"),
    "mec teacher": (lambda: mec_loss_func(X, X, X, THIN, 8.0), "z1 and p2 differ"),
    "mec ndim": (lambda: mec_loss_func(X[0], X[0], X[0], X[0], 8.0), "number of dimensions"),
    "mec one row": (lambda: mec_loss_func(ONE, ONE, ONE, ONE, 8.0), "batch is too small"),
    "mec order 0": (lambda: mec_loss_func(X, X, X, X, 8.0, 0), "order is no positive integer: 0"),
    "mec order 2.5": (lambda: mec_loss_func(X, X, X, X, 8.0, 2.5), "no positive integer: 2.5"),
    "mec order true": (lambda: mec_loss_func(X, X, X, X, 8.0, True), "no positive integer: True"),
    "mec lamda": (lambda: mec_loss_func(X, X, X, X, 0.0), "lamda_inv is not positive"),
    "twist views": (lambda: twist_loss_func(X, THIN), "f1 and f2 differ"),
    "twist ndim": (lambda: twist_loss_func(CUBE, CUBE), "number of dimensions"),
    "twist one row": (lambda: twist_loss_func(ONE, ONE), "batch is too small"),
    "twist tau": (lambda: twist_loss_func(X, X, tau=0.0), "tau is not positive: 0.0"),
    "twist tau nan": (lambda: twist_loss_func(X, X, tau=float("nan")), "tau is not positive"),
    "twist eps": (lambda: twist_loss_func(X, X, eps=0.0), "eps is not positive"),
    "multicrop views": (lambda: twist_multicrop_loss_func([X, X, OTHER]), r"logits\[2\] differ"),
    "multicrop one": (lambda: twist_multicrop_loss_func([X]), "2 or more tensors"),
    "multicrop tensor": (lambda: twist_multicrop_loss_func(CUBE), "2 or more tensors"),
    "multicrop large": (lambda: twist_multicrop_loss_func([X, X], 3), "num_large out of range: 3"),
    "multicrop no large": (lambda: twist_multicrop_loss_func([X, X], 0), "num_large out of range"),
    "teacher views": (lambda: twist_teacher_loss_func([X, X], [X, THIN]), "differ in shape"),
    "teacher none": (lambda: twist_teacher_loss_func([X, X], []), "1 or more tensors"),
    "teacher many": (lambda: twist_teacher_loss_func([X, X], [X, X, X]), "more teacher"),
    "teacher tau": (lambda: twist_teacher_loss_func([X, X], [X, X], tau=-1), "tau"),
    "label quantile 0": (lambda: twist_self_label_loss_func([X, X], 0.0), "quantile out of range"),
    "label quantile 1": (lambda: twist_self_label_loss_func([X, X], 1.0), "quantile out of range"),
    "label tau": (lambda: twist_self_label_loss_func([X, X], 0.5, 0.0), "tau is not positive"),
    "label views": (lambda: twist_self_label_loss_func([X], 0.5), "2 or more tensors"),
    "label shapes": (lambda: twist_self_label_loss_func([X, THIN], 0.5), "differ in shape"),
    "label one row": (lambda: twist_self_label_loss_func([ONE, ONE], 0.5), "too small"),
    "label teachers": (
        lambda: twist_self_label_loss_func([X, X], 0.5, teacher_logits=[X, X, X]),
        "Exactly two",
    ),
    "corinfomax views": (lambda: CorInfoMaxLoss(3, 1.0)(X, OTHER), "z1 and z2 differ"),
    "corinfomax ndim": (lambda: CorInfoMaxLoss(3, 1.0)(CUBE, CUBE), "number of dimensions"),
    "corinfomax one row": (lambda: CorInfoMaxLoss(3, 1.0)(ONE, ONE), "batch is too small"),
    "corinfomax width": (lambda: CorInfoMaxLoss(5, 1.0)(X, X), "3 columns. dim=5"),
    "corinfomax dim": (lambda: CorInfoMaxLoss(0, 1.0), "dim is no positive integer"),
    "corinfomax alpha": (lambda: CorInfoMaxLoss(3, -1.0), "alpha is negative"),
    "corinfomax eps": (lambda: CorInfoMaxLoss(3, 1.0, eps=-1e-8), "eps is negative"),
    "corinfomax R_ini": (lambda: CorInfoMaxLoss(3, 1.0, R_ini=-1.0), "R_ini is negative"),
    "corinfomax la_R": (lambda: CorInfoMaxLoss(3, 1.0, la_R=1.0), "la_R out of range"),
    "corinfomax la_mu": (lambda: CorInfoMaxLoss(3, 1.0, la_mu=-0.1), "la_mu out of range"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    call, piece = BAD[case]
    with pytest.raises(UserError, match=piece) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".") and message.count(". ") >= 1, message


def test_a_refused_batch_leaves_the_state_alone():
    criterion = CorInfoMaxLoss(3, 1.0)
    before = [b.clone() for b in criterion.buffers()]
    with pytest.raises(UserError):
        criterion(X, OTHER)
    assert all(torch.equal(a, b) for a, b in zip(before, criterion.buffers(), strict=True))


def test_full_precision_widens_and_never_narrows():
    half, brain, single, double = (
        torch.zeros(2, dtype=d)
        for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    )
    assert {x.dtype for x in full_precision(half, brain)} == {torch.float32}
    assert {x.dtype for x in full_precision(half, single)} == {torch.float32}
    assert {x.dtype for x in full_precision(single, double)} == {torch.float64}
