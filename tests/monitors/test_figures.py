"""Each figure against closed forms and against its formula in float64 numpy."""

import math

import numpy as np
import pytest
import torch

from solo_minent.losses import mec_loss_func
from solo_minent.monitors import figures


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Effective rank.


def rankme(x):
    s = np.linalg.svd(np.asarray(x, dtype=np.float64), compute_uv=False)
    p = s / s.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (9, 9), (2, 1), (64, 128)])
def test_effective_rank_is_rankme(shape):
    x = normal(*shape) + 0.5  # not centred, as in the paper
    assert figures.effective_rank(x).item() == pytest.approx(rankme(x), rel=1e-7)


def test_effective_rank_sees_small_singular_values():
    # In float32 the Gram matrix of these has lost all but the largest three.
    values = torch.logspace(0, -5, 20)
    x = torch.linalg.qr(normal(40, 20).double())[0] * values
    assert figures.effective_rank(x.float()).item() == pytest.approx(rankme(x), rel=1e-5)


def test_effective_rank_of_one_direction_and_of_all():
    line = normal(32, 1) * normal(1, 16, seed=1)
    assert figures.effective_rank(line).item() == pytest.approx(1, abs=1e-4)
    assert figures.effective_rank(torch.eye(16) * 3).item() == pytest.approx(16, rel=1e-5)
    half = torch.cat([torch.eye(8), torch.zeros(8, 8)])
    assert figures.effective_rank(half).item() == pytest.approx(8, rel=1e-5)
    assert figures.effective_rank(torch.zeros(8, 4)).item() == pytest.approx(1, abs=1e-4)


# Embeddings.


def test_embedding_std_is_one_when_isotropic_and_zero_when_collapsed():
    signed = torch.cat([torch.eye(8), -torch.eye(8)])
    assert figures.embedding_std(signed).item() == pytest.approx(1)
    # Rows e_1..e_n: mean 1/n, so a variance of 1/n - 1/n^2 in each dimension.
    assert figures.embedding_std(torch.eye(8)).item() == pytest.approx(math.sqrt(1 - 1 / 8))
    same = normal(1, 8) * torch.arange(1.0, 6)[:, None]
    assert figures.embedding_std(same).item() == pytest.approx(0, abs=1e-6)
    assert figures.embedding_std(normal(4096, 64)).item() == pytest.approx(1, abs=0.01)


def test_embedding_std_is_its_formula():
    x = normal(30, 9) + 0.3
    expected = unit(x).std(axis=0).mean() * 3
    assert figures.embedding_std(x).item() == pytest.approx(expected, rel=1e-5)
    assert figures.embedding_std(x * 50).item() == pytest.approx(expected, rel=1e-5)


def test_alignment():
    x, y = normal(12, 5), normal(12, 5, seed=1)
    assert figures.alignment(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert figures.alignment(x, -x).item() == pytest.approx(4)
    assert figures.alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(2)
    expected = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(unit(x), unit(y), strict=True)])
    assert figures.alignment(x, y).item() == pytest.approx(expected, rel=1e-5)


def test_uniformity():
    x = normal(12, 5)
    assert figures.uniformity(x[:1].expand(6, 5)).item() == pytest.approx(0, abs=1e-5)
    assert figures.uniformity(torch.zeros(6, 5)).item() == 0
    assert figures.uniformity(torch.eye(6)).item() == pytest.approx(-4)
    assert figures.uniformity(torch.stack([x[0], -x[0]])).item() == pytest.approx(-8)
    u = unit(x)
    pairs = [np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(12) for j in range(i)]
    assert figures.uniformity(x).item() == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)


# Classes.


def shares(head, tau):
    e = np.exp(np.asarray(head, dtype=np.float64) / tau)
    p = e / e.sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)
    top = np.log(p.shape[1])
    return -(mean * np.log(mean)).sum() / top, -(p * np.log(p)).sum(axis=1).mean() / top


@pytest.mark.parametrize(
    ("logits", "usage", "sharpness"),
    [
        (torch.eye(6) * 200, 1, 0),  # every class one sure image
        (torch.zeros(6, 6), 1, 1),  # nothing known of any image
        (torch.eye(6)[:1].expand(4, 6) * 200, 0, 0),  # one class takes all
        (torch.eye(9)[:3] * 200, 0.5, 0),  # three of nine classes
    ],
)
def test_class_usage_in_closed_cases(logits, usage, sharpness):
    found = figures.class_usage([logits])
    assert found["class_usage"].item() == pytest.approx(usage, abs=1e-6)
    assert found["sharpness"].item() == pytest.approx(sharpness, abs=1e-6)


def test_class_usage_is_the_mean_share_of_the_heads():
    heads = [2 * normal(20, 8), 3 * normal(20, 5, seed=1)]
    found = figures.class_usage(heads, tau=0.5)
    usage, sharpness = np.mean([shares(head, 0.5) for head in heads], axis=0)
    assert found["class_usage"].item() == pytest.approx(usage, rel=1e-5)
    assert found["sharpness"].item() == pytest.approx(sharpness, rel=1e-5)


# MEC.


@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_spectral_radius_of_random_matrices(n, scale):
    c = normal(4, n, n) * scale
    expected = np.abs(np.linalg.eigvals(np.asarray(c, dtype=np.float64))).max(axis=1)
    np.testing.assert_allclose(figures.spectral_radius(c).numpy(), expected, rtol=3e-3)


def test_spectral_radius_in_closed_cases():
    turn = torch.tensor([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]])
    radius = figures.spectral_radius
    assert radius(1.7 * turn).item() == pytest.approx(1.7, rel=1e-4)
    assert radius(torch.diag(torch.tensor([0.2, -3.0, 1.0]))).item() == pytest.approx(3, rel=1e-5)
    assert radius(torch.tensor([[2.0, 50.0], [0.0, 2.0]])).item() == pytest.approx(2, rel=1e-3)
    assert radius(torch.tensor([[0.0, 5.0], [0.0, 0.0]])).item() < 1e-30  # nilpotent
    assert radius(torch.zeros(3, 3)).item() < 1e-30


@pytest.mark.parametrize(("m", "d"), [(6, 10), (10, 6), (7, 7)])
def test_coding_is_the_log_determinant(m, d):
    p, z = normal(2, m, d), normal(2, m, d, seed=1)
    found = figures.coding(p, z, lamda_inv=0.8)
    c = unit(p) @ unit(z).transpose(0, 2, 1) / 0.8
    logdet = np.linalg.slogdet(np.eye(m) + c)[1].mean()
    assert found["coding_length"].item() == pytest.approx((m + d) / 2 * logdet / m, rel=1e-4)
    radius = np.abs(np.linalg.eigvals(c)).max()
    assert found["spectral_radius"].item() == pytest.approx(radius, rel=3e-3)


def test_coding_length_is_what_the_series_converges_to():
    m, d, lamda_inv = 12, 20, 6.0
    p, z = normal(2, m, d), normal(2, m, d, seed=1)
    found = figures.coding(p, z, lamda_inv)
    assert found["spectral_radius"] < 0.8
    # Pairings (p_1, z_2) and (p_2, z_1); the loss gives the negative series times lamda_inv.
    loss = mec_loss_func(z[1], z[0], p[0], p[1], lamda_inv, order=60)
    series = -loss / lamda_inv * (m + d) / 2
    assert found["coding_length"].item() == pytest.approx(series.item(), rel=1e-4)


@pytest.mark.parametrize("lamda_inv", [0.05, 1.0, 20.0])
def test_no_coding_length_passes_the_bound_that_a_loss_of_minus_one_is(lamda_inv):
    m, d = 10, 16
    rows = torch.linalg.qr(normal(2, 16, 16))[0][:, :m]  # orthonormal: the most there can be
    for p, z in ((rows, rows), (normal(2, m, d), normal(2, m, d, seed=1)), (rows, rows.roll(1, 1))):
        length = figures.coding(p, z, lamda_inv)["coding_length"].item()
        assert length <= (m + d) / (2 * lamda_inv)


def test_a_collapsed_batch_has_radius_d_over_eps():
    m, d, eps = 24, 64, 2.0
    same = normal(1, 1, d).expand(2, m, d)
    found = figures.coding(same, same, lamda_inv=m * eps / d)
    assert found["spectral_radius"].item() == pytest.approx(d / eps, rel=1e-4)
    expected = (m + d) / (2 * m) * math.log(1 + d / eps)
    assert found["coding_length"].item() == pytest.approx(expected, rel=1e-4)


def test_a_singular_matrix_has_a_finite_coding_length():
    # One row, p = -z, lamda_inv = 1: I + C = 0.
    x = torch.ones(1, 1, 1)
    assert figures.coding(x, -x, lamda_inv=1.0)["coding_length"].isfinite()


# CorInfoMax.


def test_covariance():
    r1 = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    found = figures.covariance(r1, torch.zeros_like(r1), eps=1e-8)
    assert found["logdet1"].item() == pytest.approx(math.log(8))
    assert found["logdet2"].item() == pytest.approx(3 * math.log(1e-8))
    assert found["smallest_eigenvalue"].item() == pytest.approx(0, abs=1e-12)
    h = normal(20, 6).double()
    r = h.T @ h / 20
    found = figures.covariance(r, 2 * r, eps=1e-8)
    expected = np.linalg.slogdet(r.numpy() + 1e-8 * np.eye(6))[1]
    assert found["logdet1"].item() == pytest.approx(expected)
    assert found["smallest_eigenvalue"].item() == pytest.approx(np.linalg.eigvalsh(r).min())


# What all share.

ALL = {
    "effective_rank": lambda x: figures.effective_rank(x),
    "embedding_std": lambda x: figures.embedding_std(x),
    "alignment": lambda x: figures.alignment(x, x.roll(1, 0)),
    "uniformity": lambda x: figures.uniformity(x),
    "class_usage": lambda x: figures.class_usage([x])["class_usage"],
    "sharpness": lambda x: figures.class_usage([x])["sharpness"],
    "coding_length": lambda x: figures.coding(x[None], x[None], 2.0)["coding_length"],
    "spectral_radius": lambda x: figures.coding(x[None], x[None], 2.0)["spectral_radius"],
    "logdet": lambda x: figures.covariance(*[(x.float().T @ x.float())] * 2, 1e-8)["logdet1"],
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_nan_and_no_error(name, bad):
    x = normal(8, 8)
    x[3, 2] = bad
    assert ALL[name](x).isnan()


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_raised_and_no_gradient_kept(name):
    x = normal(8, 8).bfloat16().requires_grad_()
    found = ALL[name](x)
    assert found.dtype in (torch.float32, torch.float64) and not found.requires_grad
    assert found.item() == pytest.approx(ALL[name](x.float()).item(), rel=1e-2)
