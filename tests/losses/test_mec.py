"""MEC against the official code, its Taylor series and its collapse values."""

from __future__ import annotations

import pytest
import torch

from solo_minent.losses import mec_coding_length, mec_loss_func, mec_loss_terms


def inputs(waves, n, d):
    w = waves(n, d)
    return w.U + 0.3 * w.V, w.U - 0.2 * w.W, w.U + 0.1 * w.W, w.U - 0.1 * w.V


def naive(z1, z2, p1, p2, lamda_inv, order):
    """The equation of the module docstring, matrix power by matrix power."""
    z1, z2, p1, p2 = (torch.nn.functional.normalize(x) for x in (z1, z2, p1, p2))
    total = 0.0
    for p, z in ((p1, z2), (p2, z1)):
        c = p @ z.T / lamda_inv
        power = torch.eye(len(c), dtype=c.dtype)
        for k in range(1, order + 1):
            power = power @ c
            total = total + (-1) ** (k + 1) / k * torch.trace(power)
    return -lamda_inv * 0.5 * total / len(z1)


@pytest.mark.parametrize("index", range(8))
def test_golden(golden, waves, leaf, close, index):
    case = golden("mec")["cases"][index]
    dtype = getattr(torch, case["dtype"])
    n, d = case["shape"]
    z1, z2, p1, p2 = inputs(waves, n, d)
    z1, z2, p1, p2 = leaf(z1, dtype), leaf(z2, dtype), p1.to(dtype), p2.to(dtype)

    loss = mec_loss_func(z1, z2, p1, p2, case["lamda_inv"], case["order"])
    loss.backward()

    assert loss.dtype == dtype
    close(loss, case["loss"], dtype, "loss")
    close(-loss / case["lamda_inv"], case["mec_loss"], dtype, "mec_loss")
    metric = mec_coding_length(loss, n, d, case["lamda_inv"])
    assert not metric.requires_grad
    close(metric, case["MEC_metric"], dtype, "coding length")
    close(z1.grad.norm(), case["grad_norm_z1"], dtype, "gradient norm z1")
    close(z2.grad.norm(), case["grad_norm_z2"], dtype, "gradient norm z2")
    if dtype == torch.float64:
        close(z1.grad[0, 0], case["grad_z1_00"], dtype, "gradient z1[0, 0]")
        close(z2.grad[-1, -1], case["grad_z2_last"], dtype, "gradient z2[-1, -1]")
    else:
        # One element is a cancelling sum: its rounding is relative to the gradient's norm.
        for actual, key, norm in (
            (z1.grad[0, 0], "grad_z1_00", "grad_norm_z1"),
            (z2.grad[-1, -1], "grad_z2_last", "grad_norm_z2"),
        ):
            assert actual.item() == pytest.approx(case[key], abs=1e-5 * case[norm])

    terms = mec_loss_terms(z1, z2, p1, p2, case["lamda_inv"], case["order"])
    assert list(terms) == [f"order_{k}" for k in range(1, case["order"] + 1)]
    close(sum(terms.values()), case["loss"], dtype, "sum of terms")


def test_each_direction_is_the_golden_trace(golden, waves, close):
    for case in golden("mec")["cases"]:
        if case["dtype"] != "float64":
            continue
        z1, z2, p1, p2 = inputs(waves, *case["shape"])
        m, lamda_inv, order = case["m"], case["lamda_inv"], case["order"]
        # With the same pair in both directions the half sum is that direction's trace.
        for p, z, key in ((p1, z2, "trace_p1_z2"), (p2, z1, "trace_p2_z1")):
            loss = mec_loss_func(z, z, p, p, lamda_inv, order)
            close(-loss / lamda_inv * m, case[key])


def test_all_golden_cases_are_run(golden):
    assert len(golden("mec")["cases"]) == 8


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7)])
def test_any_order_is_the_plain_series(leaf, order, shape):
    generator = torch.Generator().manual_seed(order)
    x = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(4)]
    # lamda_inv of the size of the eigenvalues: every order weighs in.
    ours, theirs = [leaf(z) for z in x[:2]], [leaf(z) for z in x[:2]]
    loss = mec_loss_func(*ours, *x[2:], lamda_inv=0.7, order=order)
    expected = naive(*theirs, *x[2:], 0.7, order)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    loss.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_each_term_has_its_own_gradient(leaf, shape):
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(4)]
    weights = (0.3, -2.0, 0.0, 5.0)
    ours, theirs = [leaf(z) for z in x[:2]], [leaf(z) for z in x[:2]]
    terms = mec_loss_terms(*ours, *x[2:], 0.7, 4).values()
    sum(w * term for w, term in zip(weights, terms, strict=True)).backward()
    upto = [naive(*theirs, *x[2:], 0.7, order) for order in range(5)]
    sum(w * (upto[k + 1] - upto[k]) for k, w in enumerate(weights)).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)


def test_only_the_student_gets_a_gradient(waves, leaf):
    z1, z2, p1, p2 = (leaf(x) for x in inputs(waves, 8, 16))
    mec_loss_func(z1, z2, p1, p2, 32.0).backward()
    assert z1.grad is not None and z2.grad is not None
    assert p1.grad is None and p2.grad is None


@pytest.mark.parametrize(
    ("lamda_inv_rows", "order", "expected"),
    # Eigenvalue x = m / lamda_inv of a collapsed batch: 32 at the end, 4 at the start of warm-up.
    [(32, 1, -1.0), (32, 2, 15.0), (32, 4, 7866.0), (32, 3, -326.0)]
    + [(4, 1, -1.0), (4, 2, 1.0), (4, 3, -4.33), (4, 4, 11.67), (4, 6, 131.0)],
)
@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_collapse_values(lamda_inv_rows, order, expected, shape):
    m, d = shape
    z = torch.ones(m, d, dtype=torch.float64)
    loss = mec_loss_func(z, z, z, z, m / lamda_inv_rows, order)
    # The published figures are rounded.
    assert loss.item() == pytest.approx(expected, rel=2e-3)


def test_orthogonal_aligned_batch_is_the_scalar_series():
    x = 1 / 32
    z = torch.eye(8, 16, dtype=torch.float64)
    loss = mec_loss_func(z, z, z, z, 1 / x, 4)
    assert loss.item() == pytest.approx(-(1 - x / 2 + x**2 / 3 - x**3 / 4), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 16), (64, 32)])
def test_autocast_computes_in_float32(waves, dtype, shape):
    x = [v.to(dtype) for v in inputs(waves, *shape)]
    # A collapsing scale: powers in half precision would be far off.
    lamda_inv = shape[0] / 32
    with torch.autocast("cpu", dtype=dtype):
        loss = mec_loss_func(*x, lamda_inv)
    exact = mec_loss_func(*(v.double() for v in x), lamda_inv)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_gradcheck(order, shape):
    generator = torch.Generator().manual_seed(0)
    z1, z2, p1, p2 = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in "1234")
    assert torch.autograd.gradcheck(
        lambda a, b: mec_loss_func(a, b, p1, p2, 1.5, order),
        (z1.requires_grad_(), z2.requires_grad_()),
    )
