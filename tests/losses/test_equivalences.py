"""Mathematical claims across the losses, one a test.

1. MEC batch-wise (m x m) equals MEC feature-wise (d x d).
2. MEC's series tends to the log-determinant; the rest shrinks with every order.
3. MEC of order 1 is the negative cosine similarity of SimSiam, whatever lamda_inv is.
4. TWIST consistency + sharpness tends to the symmetric cross-entropy as eps -> 0.
5. TWIST diversity lies in [0, ln C]; the loss reaches -min(ln C, ln B) and does not pass it.
6. MinEnt with a list of one head equals MinEnt with the tensor.
7. All losses are symmetric in the two views.
8. All losses leave their inputs untouched and need no gradient to run.
9. A second derivative is right or an error, never silently zero.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from solo_minent.errors import UserError
from solo_minent.losses import (
    CorInfoMaxLoss,
    mec_loss_func,
    mec_loss_terms,
    minent_loss_func,
    twist_loss_func,
    twist_loss_terms,
    twist_multicrop_loss_func,
)
from solo_minent.losses.mec import _PowerTraces


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_1_mec_batchwise_is_featurewise(order):
    p, z = randn(9, 5, seed=1), randn(9, 5, seed=2)
    featurewise = _PowerTraces.apply(p, z, 3.0, order)
    # Columns of zeros change no product but make m < d: the other branch.
    wide = [F.pad(x, (0, 20)) for x in (p, z)]
    batchwise = _PowerTraces.apply(*wide, 3.0, order)
    assert len(batchwise) == len(featurewise) == order
    for a, b in zip(batchwise, featurewise, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_2_mec_series_tends_to_the_log_determinant(golden, waves):
    for case in golden("mec")["cases"]:
        if case["dtype"] != "float64":
            continue
        m, d = case["shape"]
        w = waves(m, d)
        z1, z2, p1, p2 = w.U + 0.3 * w.V, w.U - 0.2 * w.W, w.U + 0.1 * w.W, w.U - 0.1 * w.V
        lamda_inv = case["lamda_inv"]
        exact = 0.0
        for p, z in ((p1, z2), (p2, z1)):
            c = F.normalize(p) @ F.normalize(z).T / lamda_inv
            exact -= lamda_inv / (2 * m) * torch.logdet(torch.eye(m, dtype=c.dtype) + c)
        assert exact.item() == pytest.approx(case["exact_loss"], rel=1e-9)
        errors = [
            abs(mec_loss_func(z1, z2, p1, p2, lamda_inv, order) - exact).item()
            for order in range(1, 7)
        ]
        # A geometric series in the spectral radius, down to rounding (1 + c/lamda_inv, times it).
        rho = case["spectral_radius_C"]
        for smaller, larger in zip(errors[1:], errors[:-1], strict=True):
            assert smaller < 2 * rho * larger + 1e-15 * lamda_inv, (rho, errors)


@pytest.mark.parametrize("lamda_inv", [0.5, 32.0, 1024.0])
def test_3_mec_of_order_one_is_simsiam(lamda_inv):
    z1, z2, p1, p2 = (randn(6, 10, seed=s) for s in range(4))
    simsiam = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
    torch.testing.assert_close(mec_loss_func(z1, z2, p1, p2, lamda_inv, 1), simsiam)
    first = mec_loss_terms(z1, z2, p1, p2, lamda_inv, 4)["order_1"]
    torch.testing.assert_close(first, simsiam)


def test_4_twist_consistency_plus_sharpness_is_cross_entropy():
    f1, f2 = randn(8, 5, seed=1), randn(8, 5, seed=2)
    exact = (F.cross_entropy(f1, f2.softmax(1)) + F.cross_entropy(f2, f1.softmax(1))) / 2
    gaps = []
    for eps in (1e-3, 1e-6, 1e-12):
        terms = twist_loss_terms(f1, f2, eps=eps)
        gaps.append(abs(terms["consistency"] + terms["sharpness"] - exact).item())
    assert gaps[0] > 100 * gaps[1] > 100 * gaps[2], gaps
    assert gaps[2] < 1e-10


@pytest.mark.parametrize(("batch", "classes"), [(8, 32), (32, 8)])
def test_5_twist_bounds(batch, classes):
    best = min(math.log(batch), math.log(classes))
    one_hot = 60 * F.one_hot(torch.arange(batch) % classes, classes).double()
    loss = twist_loss_func(one_hot, one_hot)
    # eps moves the optimum by about C * eps.
    assert loss.item() == pytest.approx(-best, abs=1e-3)
    collapsed = 60 * F.one_hot(torch.zeros(batch, dtype=torch.long), classes).double()
    assert twist_loss_terms(collapsed, collapsed)["diversity"].item() == pytest.approx(0, abs=2e-5)
    for seed in range(5):
        f1, f2 = (3 * randn(batch, classes, seed=10 * seed + k) for k in (0, 1))
        terms = twist_loss_terms(f1, f2)
        assert 0 <= terms["diversity"].item() <= math.log(classes)
        assert terms["consistency"].item() >= 0
        assert twist_loss_func(f1, f2).item() > -best


@pytest.mark.parametrize("norm", ["bn", "softmax", "l2", "none"])
def test_6_one_head_in_a_list_is_the_tensor(norm):
    g1, g2 = randn(9, 6, seed=1), randn(9, 6, seed=2)
    assert torch.equal(minent_loss_func([g1], [g2], norm), minent_loss_func(g1, g2, norm))


ALL = {
    "minent": lambda a, b: minent_loss_func(a, b),
    "mec": lambda a, b: mec_loss_func(a, b, b.detach() + 0.1, a.detach() + 0.1, 8.0),
    "twist": lambda a, b: twist_loss_func(a, b, lam1=-0.6),
    "twist_multicrop": lambda a, b: twist_multicrop_loss_func([a, b, (a + b) / 2]),
    "corinfomax": lambda a, b: CorInfoMaxLoss(a.shape[1], 250.0)(a, b),
}


@pytest.mark.parametrize("name", ALL)
def test_7_symmetric_in_the_views(name):
    a, b = randn(12, 6, seed=1), randn(12, 6, seed=2)
    torch.testing.assert_close(ALL[name](a, b), ALL[name](b, a), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_8_inputs_are_left_alone(name):
    a, b = randn(12, 6, seed=1), randn(12, 6, seed=2)
    kept = a.clone(), b.clone()
    loss = ALL[name](a, b)
    assert loss.shape == () and not loss.requires_grad
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])


@pytest.mark.parametrize("route", ["grad", "backward", "hessian"])
@pytest.mark.parametrize(
    "name", ["mec", "mec of order 1", "twist", "twist_multicrop", "corinfomax"]
)
def test_9_no_second_derivative_is_an_error(name, route):
    losses = {**ALL, "mec of order 1": lambda a, b: mec_loss_func(a, b, b.detach(), b, 8.0, 1)}
    a, b = randn(12, 6, seed=1).requires_grad_(), randn(12, 6, seed=2)
    # What is added has a second derivative: in the sum that of the loss must not be missing.
    loss = losses[name](a, b) + (a**3).sum()
    (gradient,) = torch.autograd.grad(loss, a, create_graph=True)
    (plain,) = torch.autograd.grad(losses[name](a, b) + (a**3).sum(), a)
    assert torch.equal(gradient, plain)
    with pytest.raises(UserError, match="second derivative of a loss"):
        if route == "grad":
            torch.autograd.grad(gradient.square().sum(), a)
        elif route == "backward":
            gradient.square().sum().backward()
        else:
            torch.autograd.functional.hessian(lambda x: losses[name](x, b), a.detach())


def test_9_second_derivative_of_minent():
    a, b = randn(4, 3, seed=1).requires_grad_(), randn(4, 3, seed=2)
    assert torch.autograd.gradgradcheck(lambda x: minent_loss_func(x, b), a)
