"""MinEnt's heads computed together are the single heads, to the last buffer."""

import copy

import pytest
import torch

from solo_minent.methods.minent import MultiHead

WIDTHS = [16, 8, 4]


def heads(num_layers, dtype=torch.float64):
    torch.manual_seed(num_layers)
    made = MultiHead(12, WIDTHS, 10, num_layers).to(dtype)
    for parameter in made.parameters():  # no ones and zeros
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("num_layers", [2, 3, 4])
@pytest.mark.parametrize("training", [True, False])
def test_heads_together_are_the_single_heads(num_layers, training):
    single = heads(num_layers).train(training)
    together = copy.deepcopy(single)
    feats = torch.randn(6, 12, dtype=torch.float64)
    weights = [torch.randn(6, d, dtype=torch.float64) for d in WIDTHS]
    grads = []
    for module, run in ((single, single.forward), (together, together._together)):
        leaf = feats.clone().requires_grad_()
        outputs = [run(leaf), run(leaf + 1)]  # two views: running statistics move twice
        loss = sum((w * g).sum() for view in outputs for w, g in zip(weights, view, strict=True))
        grads.append(torch.autograd.grad(loss, [leaf, *module.parameters()]))
        assert [g.shape for g in outputs[0]] == [(6, d) for d in WIDTHS]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    for name, buffer in together.state_dict().items():
        torch.testing.assert_close(buffer, single.state_dict()[name], rtol=1e-12, atol=1e-14)
    moved = int(together.heads[0][1].num_batches_tracked)
    assert moved == (2 if training else 0)


def test_features_are_left_as_they_are():
    feats = torch.randn(6, 12)
    before = feats.clone()
    heads(3, torch.float32)._together(feats)
    assert torch.equal(feats, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_heads_together_under_autocast(dtype):
    module, feats = heads(3, torch.float32), torch.randn(6, 12)
    with torch.autocast("cpu", dtype):
        for one, other in zip(module(feats), module._together(feats), strict=True):
            assert one.dtype == other.dtype == dtype
            torch.testing.assert_close(other, one, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_heads_of_one_layer(device):
    outputs = heads(1).to(device)(torch.zeros(6, 12, dtype=torch.float64, device=device))
    assert [g.shape for g in outputs] == [(6, d) for d in WIDTHS]


def test_accelerators_compute_the_heads_together(monkeypatch):
    module, called = heads(3), []
    monkeypatch.setattr(module, "_together", called.append)
    module(torch.zeros(6, 12, dtype=torch.float64))
    assert not called  # one after the other is faster on a CPU
    module(torch.zeros(6, 12, device="meta"))
    assert len(called) == 1
