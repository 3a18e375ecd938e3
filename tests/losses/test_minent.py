"""MinEnt against the official code, and what keeps it from collapsing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from solo_minent.losses import (
    minent_loss_func,
    minent_loss_terms,
    minent_targets,
    target_entropy,
)

# The official code's names of the norms.
NORM = {"BN": "bn", "softmax": "softmax", "l2norm": "l2", "no": "none"}
NORMS = list(NORM.values())


def views(waves, n, heads):
    g1, g2 = [], []
    for k, d in enumerate(heads):
        w = waves(n, d)
        g1.append(2 * (w.U + 0.3 * w.V) + 0.1 * k)
        g2.append(2 * (w.U - 0.2 * w.W) - 0.1 * k)
    return g1, g2


@pytest.mark.parametrize("index", range(10))
def test_golden(golden, waves, leaf, close, index):
    case = golden("minent")["cases"][index]
    dtype = getattr(torch, case["dtype"])
    g1, g2 = views(waves, case["n"], case["heads"])
    g1, g2 = [leaf(g, dtype) for g in g1], [leaf(g, dtype) for g in g2]
    norm = NORM[case["norm"]]

    loss = minent_loss_func(g1, g2, norm)
    loss.backward()

    assert loss.dtype == dtype
    close(loss, case["loss"], dtype, "loss")
    for g, expected in zip(g1 + g2, case["grad_norm_g1"] + case["grad_norm_g2"], strict=True):
        close(g.grad.norm(), expected, dtype, "gradient norm")
    for g, expected in ((g1, "targets_view1_first8"), (g2, "targets_view2_first8")):
        assert [t[:8].tolist() for t in minent_targets(g, norm)] == case[expected]
    close(torch.stack(list(minent_loss_terms(g1, g2, norm).values())).mean(), case["loss"], dtype)


def test_all_golden_cases_are_run(golden):
    assert len(golden("minent")["cases"]) == 10


def test_terms_are_the_heads_own_losses(waves):
    g1, g2 = views(waves, 16, [12, 5, 9])
    terms = minent_loss_terms(g1, g2, "bn")
    assert list(terms) == ["head_0", "head_1", "head_2"]
    for a, b, term in zip(g1, g2, terms.values(), strict=True):
        torch.testing.assert_close(term, minent_loss_func(a, b, "bn"), rtol=1e-12, atol=0)


def test_known_targets_are_used_as_they_are(waves):
    g1, g2 = views(waves, 16, [12, 5])
    targets = (minent_targets(g1, "bn"), minent_targets(g2, "bn"))
    given, own = minent_loss_terms(g1, g2, "bn", targets), minent_loss_terms(g1, g2, "bn")
    assert all(torch.equal(given[key], own[key]) for key in own)
    # View 1's logits are scored against view 2's targets.
    shifted = (targets[0], [(t + 1) % g.shape[1] for t, g in zip(targets[1], g2, strict=True)])
    half = [
        (F.cross_entropy(a, t2) + F.cross_entropy(b, t1)) / 2
        for a, b, t1, t2 in zip(g1, g2, *shifted, strict=True)
    ]
    terms = minent_loss_terms(g1, g2, "bn", shifted)
    torch.testing.assert_close(list(terms.values()), half, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_those_of_torchs_own_normalisation(norm):
    g = torch.randn(32, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3 + 1
    bn = torch.nn.BatchNorm1d(7, dtype=torch.float64)
    reference = {
        "bn": bn,
        "softmax": lambda x: x.softmax(dim=0),
        "l2": lambda x: F.normalize(x, dim=0),
        "none": lambda x: x,
    }[norm](g)
    assert torch.equal(minent_targets(g, norm), reference.argmax(dim=1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("columns", [9, 37])
def test_ties_of_equal_units_go_to_the_first(norm, columns):
    # Sums over the batch must not depend on where in memory a unit lies.
    unit = torch.randn(128, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not minent_targets(unit.expand(-1, columns).contiguous(), norm).any()


def test_targets_carry_no_gradient_and_ties_go_to_the_first_unit():
    g = torch.zeros(4, 3, requires_grad=True)
    targets = minent_targets(g, "none")
    assert targets.dtype == torch.int64 and not targets.requires_grad
    assert targets.tolist() == [0, 0, 0, 0]


def test_softmax_targets_survive_logits_that_underflow():
    # Column 1 wins every row of the second half, but exp() of those rows is zero in both columns.
    g = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-2000.0, -1990.0], [-2000.0, -1990.0]])
    assert minent_targets(g, "softmax").tolist() == [0, 0, 1, 1]


def _train(norm):
    """Relative entropy of the targets before and after 50 steps from an unbalanced linear head."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 16, generator=generator)
    head = torch.nn.Linear(16, 8)
    with torch.no_grad():
        head.weight.copy_(torch.randn(8, 16, generator=generator) * 0.1)
        head.bias.copy_(torch.randn(8, generator=generator) * 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    entropies = [target_entropy(head(x).argmax(dim=1), 8).item() / math.log(8)]
    for _ in range(50):
        noisy = [x + 0.1 * torch.randn(128, 16, generator=generator) for _ in range(2)]
        loss = minent_loss_func(head(noisy[0]), head(noisy[1]), norm)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return *entropies, target_entropy(head(x).argmax(dim=1), 8).item() / math.log(8)


def test_without_norm_the_code_book_collapses_with_bn_it_does_not():
    start, collapsed = _train("none")
    same_start, healthy = _train("bn")
    assert start == same_start and start > 0.1
    assert collapsed == 0
    assert healthy > 0.95, healthy


def test_collapsed_logits_stay_collapsed_without_norm():
    g = torch.randn(16, 8) * 0.01
    g[:, 3] += 50
    assert target_entropy(minent_targets(g, "none"), 8) == 0
    assert target_entropy(minent_targets(g, "bn"), 8) > 1


def test_half_precision_targets_are_those_of_the_widened_logits():
    # Statistics rounded to float16 would change the winners: columns differ in location and scale.
    generator = torch.Generator().manual_seed(0)
    location, scale = (torch.randn(300, generator=generator) for _ in range(2))
    g = (torch.randn(256, 300, generator=generator) * scale + 4 * location).half()
    for norm in NORMS:
        assert torch.equal(minent_targets(g, norm), minent_targets(g.float(), norm)), norm


def test_target_entropy_values_and_lists():
    uniform, single = torch.arange(8), torch.full((5,), 2)
    assert target_entropy(uniform, 8).item() == pytest.approx(math.log(8), rel=1e-6)
    assert target_entropy(single, 4).item() == 0
    halves = torch.tensor([0, 0, 1, 1])
    both = target_entropy([halves, uniform], [100, 8])
    assert both.dtype == torch.float32 and both.shape == (2,)
    assert both.tolist() == pytest.approx([math.log(2), math.log(8)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_autocast_computes_in_float32(waves, dtype, norm):
    (g1,), (g2,) = views(waves, 32, [16])
    g1, g2 = g1.to(dtype), g2.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = minent_loss_func(g1, g2, norm)
    exact = minent_loss_func(g1.double(), g2.double(), norm)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_gradcheck():
    generator = torch.Generator().manual_seed(1)
    g1, g2 = (
        torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda a, b: minent_loss_func(a, b, "bn"), (g1, g2))
