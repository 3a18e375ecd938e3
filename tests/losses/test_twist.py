"""TWIST against the official code: two views, multi-crop, teacher, self-labels."""

from __future__ import annotations

import math

import pytest
import torch

from solo_minent.losses import (
    twist_loss_func,
    twist_loss_terms,
    twist_multicrop_loss_func,
    twist_multicrop_loss_terms,
    twist_self_label_loss_func,
    twist_teacher_loss_func,
    twist_teacher_loss_terms,
)
from solo_minent.methods.twist import BunchNorm


def student_views(waves, n, c, s=2.0):
    w0, w1 = waves(n, c, 0), waves(n, c, 1)
    return [
        s * (w0.U + 0.3 * w0.V),
        s * (w0.U - 0.2 * w0.W),
        s * (0.7 * w0.U + 0.5 * w1.V),
        s * (0.6 * w0.U - 0.6 * w1.W),
    ]


def teacher_views(waves, n, c, s=2.0):
    w = waves(n, c)
    return [s * (w.U + 0.1 * w.W), s * (w.U - 0.1 * w.V)]


def cases(golden, kind):
    return [c for c in golden("twist")["cases"] if c["name"].startswith(kind)]


def check_terms(close, terms, case, dtype):
    for ours, theirs in (("consistency", "kl"), ("sharpness", "eh"), ("diversity", "he")):
        close(terms[ours], case[theirs], dtype, ours)


@pytest.mark.parametrize("index", range(8))
def test_golden_two_views(golden, waves, leaf, close, index):
    case = (cases(golden, "default") + cases(golden, "vit"))[index]
    dtype = getattr(torch, case["dtype"])
    f1, f2 = (leaf(f, dtype) for f in student_views(waves, *case["shape"], case["scale_s"])[:2])
    a, b = f1, f2
    if case["bn_before_softmax_over_both_views"]:
        rows, classes = case["shape"]
        norm = BunchNorm(classes, rows).to(dtype)
        a, b = norm([f1, f2])
        close(norm.running_mean.norm(), case["bn_running_mean_norm"], dtype, "running mean")
        close(norm.running_var.norm(), case["bn_running_var_norm"], dtype, "running variance")

    loss = twist_loss_func(a, b, case["lam1"], case["lam2"], case["tau"], case["EPS"])
    loss.backward()

    assert loss.dtype == dtype
    # final is a difference of larger terms: float32 rounding is relative to those.
    if dtype == torch.float64:
        close(loss, case["final"], dtype, "loss")
        close(f1.grad[0, 0], case["grad_f1_00"], dtype, "gradient f1[0, 0]")
    else:
        assert loss.item() == pytest.approx(case["final"], abs=1e-5)
        assert f1.grad[0, 0].item() == pytest.approx(
            case["grad_f1_00"], abs=1e-5 * case["grad_norm_f1"]
        )
    check_terms(close, twist_loss_terms(a, b, case["tau"], case["EPS"]), case, dtype)
    close(f1.grad.norm(), case["grad_norm_f1"], dtype, "gradient norm f1")
    close(f2.grad.norm(), case["grad_norm_f2"], dtype, "gradient norm f2")


@pytest.mark.parametrize("index", range(2))
def test_golden_multicrop(golden, waves, leaf, close, index):
    case = cases(golden, "multicrop")[index]
    dtype = getattr(torch, case["dtype"])
    f = [leaf(x, dtype) for x in student_views(waves, *case["shape"])]
    loss = twist_multicrop_loss_func(f, 2, case["lam1"], case["lam2"], case["tau"], case["EPS"])
    loss.backward()
    close(loss, case["final"], dtype, "loss")
    check_terms(close, twist_multicrop_loss_terms(f), case, dtype)
    for x, expected in zip(f, case["grad_norms"], strict=True):
        close(x.grad.norm(), expected, dtype, "gradient norm")


@pytest.mark.parametrize("index", range(2))
def test_golden_self_label(golden, waves, leaf, close, index):
    case = cases(golden, "selflabel")[index]
    dtype = getattr(torch, case["dtype"])
    f = [leaf(x, dtype) for x in student_views(waves, *case["shape"])]
    loss = twist_self_label_loss_func(f, case["quantile"])
    loss.backward()
    close(loss, case["final"], dtype, "loss")
    assert f[0].grad is not None
    for x, expected in zip(f, case["grad_norms"], strict=True):
        close(x.grad.norm(), expected, dtype, "gradient norm")
    # The learners' selected rows have a gradient, the others none.
    assert (f[2].grad.abs().sum(dim=1) > 0).sum().item() == case["n_selected"]


def test_all_golden_cases_are_run(golden):
    assert len(golden("twist")["cases"]) == 8 + 2 + 2


def explicit_terms(f1, f2, tau, eps):
    """The equations of the module docstring, line by line."""
    p = [f.softmax(1) for f in (f1, f2)]
    s = [(f / tau).softmax(1) for f in (f1, f2)]
    kl = [(a * ((a + eps).log() - (b + eps).log())).sum(1).mean() for a, b in (p, p[::-1])]
    eh = [-(x * (x + eps).log()).sum(1).mean() for x in s]
    he = [-(x.mean(0) * (x.mean(0) + eps).log()).sum() for x in s]
    return {"consistency": sum(kl) / 2, "sharpness": sum(eh) / 2, "diversity": sum(he) / 2}


def same_terms(actual, expected):
    assert list(actual) == ["consistency", "sharpness", "diversity"]
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-14, msg=key)


@pytest.mark.parametrize(("tau", "eps"), [(1.0, 1e-5), (0.3, 1e-5), (2.0, 1e-3)])
def test_temperature_and_eps(waves, tau, eps):
    f1, f2 = student_views(waves, 16, 8)[:2]
    expected = explicit_terms(f1, f2, tau, eps)
    same_terms(twist_loss_terms(f1, f2, tau, eps), expected)
    loss = twist_loss_func(f1, f2, lam1=0.7, lam2=1.9, tau=tau, eps=eps)
    total = expected["consistency"] + 1.7 * expected["sharpness"] - 1.9 * expected["diversity"]
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("n_views", "num_large", "pairs"), [(4, 2, 5), (3, 1, 2), (4, 3, 6)])
def test_multicrop_is_the_mean_over_explicit_pairs(waves, leaf, n_views, num_large, pairs):
    f = [leaf(x) for x in student_views(waves, 8, 16)[:n_views]]
    index = [(i, j) for i in range(num_large) for j in range(i + 1, n_views)]
    assert len(index) == pairs
    each = [explicit_terms(f[i], f[j], 0.5, 1e-5) for i, j in index]
    mean = {key: sum(e[key] for e in each) / pairs for key in each[0]}
    terms = twist_multicrop_loss_terms(f, num_large, tau=0.5)
    same_terms(terms, mean)
    ours = torch.autograd.grad(sum(terms.values()), f)
    theirs = torch.autograd.grad(sum(mean.values()), f)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_teacher_pairs_and_temperature(waves, leaf, tau):
    eps = 1e-5
    f = [leaf(x) for x in student_views(waves, 8, 16)]
    t = [leaf(x) for x in teacher_views(waves, 8, 16)]
    q = [(x / tau).softmax(1).detach() for x in t]
    s = [(x / tau).softmax(1) for x in f]
    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    assert len(pairs) == 6
    expected = {
        "consistency": sum(
            (q[i] * ((q[i] + eps).log() - (s[j] + eps).log())).sum(1).mean() for i, j in pairs
        )
        / 6,
        "sharpness": sum(-(x * (x + eps).log()).sum(1).mean() for x in s) / 4,
        "diversity": sum(-(x.mean(0) * (x.mean(0) + eps).log()).sum() for x in s) / 4,
    }
    same_terms(twist_teacher_loss_terms(f, t, tau), expected)
    loss = twist_teacher_loss_func(f, t, lam1=-0.6, lam2=1.0, tau=tau)
    total = expected["consistency"] + 0.4 * expected["sharpness"] - expected["diversity"]
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=0)
    loss.backward()
    assert all(x.grad is None for x in t)
    assert all(x.grad.norm() > 0 for x in f)


def explicit_self_label(f, anchors, quantile):
    """The rule of the docstring, sample by sample."""
    p = [a.softmax(1) for a in anchors]
    confidence = torch.maximum(p[0].amax(1), p[1].amax(1))
    b = len(confidence)
    threshold = confidence.sort(descending=True).values[min(int(quantile * b), b - 1)]
    losses, count = [0.0] * (len(f) - 1), 0
    for i in range(b):
        if confidence[i] <= threshold:
            continue
        count += 1
        weak = 0 if p[0][i].max() > p[1][i].max() else 1
        label = p[weak][i].argmax()
        for k, learner in enumerate([f[1 - weak], *f[2:]]):
            losses[k] = losses[k] - learner[i].log_softmax(0)[label]
    return sum(losses) / count / len(losses), count


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.6])
@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("n_views", [2, 4])
def test_self_label_rule(waves, leaf, quantile, with_teacher, n_views):
    f = [leaf(x) for x in student_views(waves, 16, 8)[:n_views]]
    t = teacher_views(waves, 16, 8) if with_teacher else None
    expected, count = explicit_self_label(f, t or f[:2], quantile)
    assert count == int(quantile * 16)
    loss = twist_self_label_loss_func(f, quantile, teacher_logits=t)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss, f)
    theirs = torch.autograd.grad(expected, f, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-16)


def test_self_label_tie_makes_the_second_view_the_anchor(leaf):
    # Both crops are equally sure of different classes.
    f1 = leaf(torch.tensor([[2.0, 0.0], [0.1, 0.0]]))
    f2 = leaf(torch.tensor([[0.0, 2.0], [0.0, 0.1]]))
    loss = twist_self_label_loss_func([f1, f2], 0.5)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(2))))
    loss.backward()
    assert f2.grad.abs().max() == 0 and f1.grad.abs().max() > 0


def test_self_label_without_a_sample_is_zero_with_a_graph(waves, leaf):
    f = [leaf(x) for x in student_views(waves, 8, 16)]
    loss = twist_self_label_loss_func(f, 0.1)  # int(0.1 * 8) = 0 samples
    loss.backward()
    assert loss.item() == 0
    assert all(x.grad is not None and x.grad.abs().max() == 0 for x in f)


def test_self_label_temperature_orders_samples_but_not_the_cross_entropy(waves):
    f = student_views(waves, 16, 8)
    hot, cold = (twist_self_label_loss_func(f, 0.5, tau=tau) for tau in (0.05, 1.0))
    assert hot.item() > 0
    # A positive temperature scales all logits of two classes alike: the same choice.
    two = [x[:, :2] for x in f]
    a, b = (twist_self_label_loss_func(two, 0.5, tau=tau) for tau in (0.5, 1.0))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert hot.item() != cold.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(waves, dtype):
    f = [x.to(dtype) for x in student_views(waves, 32, 64)]
    t = [x.to(dtype) for x in teacher_views(waves, 32, 64)]

    def losses(f, t):
        return [
            twist_loss_func(f[0], f[1], lam1=-0.6),
            twist_multicrop_loss_func(f),
            twist_teacher_loss_func(f, t),
            twist_self_label_loss_func(f, 0.5),
        ]

    with torch.autocast("cpu", dtype=dtype):
        actual = losses(f, t)
    for a, b in zip(actual, losses([x.double() for x in f], [x.double() for x in t]), strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=1e-4, abs=1e-5)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    f = [
        torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    ]
    t = [x.detach() + 0.3 for x in f[:2]]
    check = torch.autograd.gradcheck
    assert check(lambda a, b: twist_loss_func(a, b, 0.2, 0.8, 0.7), f[:2])
    assert check(lambda *x: twist_multicrop_loss_func(x, 2, 0.2, 0.8, 0.7), f)
    assert check(lambda *x: twist_teacher_loss_func(x, t, 0.2, 0.8, 0.7), f)
