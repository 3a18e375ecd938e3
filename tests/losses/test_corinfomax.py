"""CorInfoMax against the official code over three steps, and the life of its state."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F

from solo_minent.losses import CorInfoMaxLoss
from solo_minent.losses.corinfomax import _logdet


def raw(waves, case, step):
    w = waves(*case["shape"], step)
    base = w.X3 if case["name"].startswith("fullrank_") else w.U
    return base + 0.3 * w.V, base - 0.2 * w.W


def make(case):
    return CorInfoMaxLoss(
        case["shape"][1],
        case["alpha"],
        la_R=case["la_R"],
        la_mu=case["la_mu"],
        eps=case["R_eps_weight"],
        R_ini=case["R_ini"],
        normalize=case["normalize"],
    )


@pytest.mark.parametrize("index", range(8))
def test_golden(golden, waves, leaf, close, index):
    case = golden("corinfomax")["cases"][index]
    dtype = getattr(torch, case["dtype"])
    criterion, twin = make(case), make(case)
    assert len(case["steps"]) == 3
    for expected in case["steps"]:
        z1, z2 = (leaf(z, dtype) for z in raw(waves, case, expected["step"]))
        loss = criterion(z1, z2)
        gradients = torch.autograd.grad(loss, (z1, z2))
        terms = twin.terms(z1, z2)
        cov_gradients = torch.autograd.grad(-terms["logdet"], (z1, z2))

        assert loss.dtype == terms["logdet"].dtype == terms["invariance"].dtype == torch.float64
        close(loss, expected["loss"], dtype, "loss")
        close(terms["invariance"], expected["sim"], dtype, "sim")
        close(-terms["logdet"], expected["cov"], dtype, "cov")
        for k in (0, 1):
            close(gradients[k].norm(), expected[f"grad_norm_raw{k + 1}"], dtype, "gradient")
            close(cov_gradients[k].norm(), expected[f"grad_norm_cov_raw{k + 1}"], dtype, "cov grad")
        identity = torch.eye(criterion.dim, dtype=torch.float64)
        logdet = torch.logdet(criterion.R1 + criterion.eps * identity)
        close(logdet, expected["logdet_R1"], dtype, "logdet R1")
        close(criterion.R1.trace(), expected["trace_R1"], dtype, "trace R1")
        close(criterion.R2.norm(), expected["fro_R2"], dtype, "norm R2")
        close(criterion.mu1.norm(), expected["mu1_norm"], dtype, "norm mu1")
        close(criterion.mu2[0], expected["mu2_0"], dtype, "mu2[0]")
    for a, b in zip(criterion.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_all_golden_cases_are_run(golden):
    assert len(golden("corinfomax")["cases"]) == 8


def explicit(z1, z2, R, mu, alpha, la_R, la_mu, eps, normalize):
    """The equations of the module docstring, branch by branch."""
    loss, new = 0.0, []
    views = [F.normalize(z) if normalize else z for z in (z1, z2)]
    for z, r, m in zip(views, R, mu, strict=True):
        m = la_mu * m + (1 - la_mu) * z.mean(0)
        h = z - m
        r = la_R * r + (1 - la_R) * h.T @ h / len(z)
        loss = loss - torch.logdet(r + eps * torch.eye(len(m), dtype=torch.float64)) / len(m)
        new.append((r.detach(), m.detach()))
    return loss + alpha * F.mse_loss(*views), new


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [4, 128, 300])  # one strip of the covariance, and several
def test_other_constants_over_steps(leaf, dim, normalize):
    constants = {"alpha": 3.0, "la_R": 0.4, "la_mu": 0.7, "eps": 1e-3}
    criterion = CorInfoMaxLoss(dim, R_ini=2.0, normalize=normalize, **constants)
    R = [2.0 * torch.eye(dim, dtype=torch.float64)] * 2
    mu = [torch.zeros(dim, dtype=torch.float64)] * 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = [torch.randn(9, dim, dtype=torch.float64, generator=generator) + k for k in (0, 1)]
        ours, theirs = [leaf(v) for v in x], [leaf(v) for v in x]
        loss = criterion(*ours)
        expected, new = explicit(*theirs, R, mu, normalize=normalize, **constants)
        R, mu = ([r for r, _ in new], [m for _, m in new])
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        loss.backward()
        expected.backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
        state = (criterion.R1, criterion.R2, criterion.mu1, criterion.mu2)
        for a, b in zip(state, (*R, *mu), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def batch(seed, n=12, d=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator) for _ in range(2)]


def test_eval_gives_the_next_loss_but_keeps_the_state():
    criterion = CorInfoMaxLoss(6, 250.0)
    criterion(*batch(0))
    before = state_of(criterion)
    criterion.eval()
    with torch.no_grad():
        frozen = criterion(*batch(1))
        criterion.terms(*batch(1))
    assert all(torch.equal(before[k], v) for k, v in criterion.state_dict().items())
    criterion.train()
    assert torch.equal(criterion(*batch(1)), frozen)
    assert not any(torch.equal(before[k], v) for k, v in criterion.state_dict().items())


def test_state_dict_round_trip_resumes_exactly():
    criterion = CorInfoMaxLoss(6, 250.0, la_R=0.3)
    for seed in range(3):
        criterion(*batch(seed))
    assert sorted(criterion.state_dict()) == ["R1", "R2", "mu1", "mu2"]
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    resumed = CorInfoMaxLoss(6, 250.0, la_R=0.3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed(*batch(9)), criterion(*batch(9)))
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.buffers(), criterion.buffers(), strict=True)
    )


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: torch.nn.ModuleDict({"criterion": m, "head": torch.nn.Linear(2, 2)}).half(),
    ],
)
def test_casts_leave_the_state_in_float64(cast):
    criterion = CorInfoMaxLoss(6, 250.0)
    criterion(*batch(0))
    before = state_of(criterion)
    cast(criterion)
    for key, value in criterion.state_dict().items():
        assert value.dtype == torch.float64, key
        assert torch.equal(value, before[key]), key


def test_state_moves_across_devices():
    criterion = CorInfoMaxLoss(6, 250.0).to("meta", torch.float16)
    assert {(b.device.type, b.dtype) for b in criterion.buffers()} == {("meta", torch.float64)}


def test_state_is_updated_in_place_and_without_graph():
    criterion = CorInfoMaxLoss(6, 250.0)
    buffers = list(criterion.buffers())
    storage = [b.data_ptr() for b in buffers]
    z1, z2 = (z.requires_grad_() for z in batch(0))
    criterion(z1, z2).backward()
    criterion(z1, z2).backward()  # the first graph is gone: the state must not reach into it
    assert all(a is b for a, b in zip(buffers, criterion.buffers(), strict=True))
    assert storage == [b.data_ptr() for b in criterion.buffers()]
    assert not any(b.requires_grad for b in criterion.buffers())


def test_log_determinant_is_bounded_by_unit_rows():
    for d in (4, 16):
        # The uniform distribution on +-e_j has covariance I / D: the bound 2 ln D is reached.
        z = torch.cat([torch.eye(d), -torch.eye(d)])
        criterion = CorInfoMaxLoss(d, 1.0, la_R=0.0, la_mu=0.0)
        best = -criterion.terms(z, z)["logdet"].item()
        assert best == pytest.approx(2 * math.log(d), rel=1e-6)
        z1, z2 = batch(d, n=64, d=d)
        assert -criterion.terms(z1, z2)["logdet"].item() > best
        collapsed = torch.ones(2 * d, d) + 0.01 * batch(0, n=2 * d, d=d)[0]
        assert -criterion.terms(collapsed, collapsed)["logdet"].item() > best + 5


def test_logdet_repairs_rounding_and_reports_nan():
    good = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
    # Rank one, pushed below zero by less than rounding.
    bad = torch.ones(3, 3, dtype=torch.float64) - 1e-16 * torch.eye(3, dtype=torch.float64)
    bad[2, 2] -= 4e-16
    assert torch.linalg.cholesky_ex(bad).info > 0
    broken = torch.full((3, 3), torch.nan, dtype=torch.float64)
    value, factor = _logdet(torch.stack([good, bad]), 0.0)
    assert value[0].item() == 0.0
    assert math.isfinite(value[1].item()) and value[1] < -50
    inverse = torch.cholesky_inverse(factor)
    assert inverse.isfinite().all()
    torch.testing.assert_close(inverse[0], good.inverse(), rtol=1e-12, atol=0)
    value, _ = _logdet(torch.stack([good, broken]), 0.0)
    assert value.isnan().tolist() == [False, True]


def test_non_finite_input_gives_nan():
    z1, z2 = batch(0)
    z1[0, 0] = torch.nan
    assert CorInfoMaxLoss(6, 1.0)(z1, z2).isnan()


def test_fewer_rows_than_columns_stay_finite():
    criterion = CorInfoMaxLoss(32, 250.0)
    for seed in range(12):
        z1, z2 = (z.requires_grad_() for z in batch(seed, n=4, d=32))
        loss = criterion(z1, z2)
        loss.backward()
        assert loss.isfinite() and z1.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_float64(dtype):
    z1, z2 = (z.to(dtype) for z in batch(0, n=32, d=8))
    with torch.autocast("cpu", dtype=dtype):
        loss = CorInfoMaxLoss(8, 250.0)(z1, z2)
    exact = CorInfoMaxLoss(8, 250.0)(z1.double(), z2.double())
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_gradcheck():
    criterion = CorInfoMaxLoss(3, 5.0, la_R=0.2, la_mu=0.3).eval()
    z1, z2 = (z.double().requires_grad_() for z in batch(0, n=5, d=3))
    assert torch.autograd.gradcheck(criterion, (z1, z2))
