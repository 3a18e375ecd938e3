"""TWIST's bunch norm and its two stages."""

import copy

import pytest
import torch
from torch import nn

from solo_minent.errors import UserError
from solo_minent.methods import Progress, twist
from solo_minent.methods.twist import BunchNorm, TwistHead, TWISTParams

SMALL = {"hidden_dim": 16, "output_dim": 8, "bunch_size": 8}


def test_one_bunch_is_batch_norm_over_all_views():
    views = [torch.randn(8, 5, dtype=torch.float64) * 3 + i for i in range(3)]
    bunch, batch = BunchNorm(5, 8).double(), nn.BatchNorm1d(5, affine=False).double()
    out = torch.cat(bunch(views))
    torch.testing.assert_close(out, batch(torch.cat(views)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bunch.running_mean, batch.running_mean)
    torch.testing.assert_close(bunch.running_var, batch.running_var)
    bunch.eval(), batch.eval()
    torch.testing.assert_close(torch.cat(bunch(views)), batch(torch.cat(views)))


def test_bunches_share_nothing():
    views = [torch.randn(8, 5) for _ in range(2)]
    out = BunchNorm(5, 4)(views)
    for rows in (slice(0, 4), slice(4, 8)):
        alone = BunchNorm(5, 4)([view[rows] for view in views])
        for whole, part in zip(out, alone, strict=True):
            torch.testing.assert_close(whole[rows], part)
    changed = [view.clone() for view in views]
    changed[0][5] += 100.0
    torch.testing.assert_close(BunchNorm(5, 4)(changed)[1][:4], out[1][:4])


def test_gradient_flows_through_the_statistics():
    views = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    norm = BunchNorm(3, 2).double()
    assert torch.autograd.gradcheck(lambda a, b: tuple(norm([a, b])), views)


def test_groups_follow_the_number_of_ranks_and_stay_out_of_copies(monkeypatch):
    norm = BunchNorm(3, 8)
    monkeypatch.setattr(
        twist.distributed, "new_subgroups", lambda group_size: (f"of {group_size}", [])
    )
    assert [norm._group(ranks) for ranks in (1, 2, 4, 2)] == [None, "of 2", "of 4", "of 2"]
    # Process groups, which these stand for, can be neither copied nor saved.
    assert copy.deepcopy(norm)._groups == {} and norm._groups != {}


def test_half_precision_logits_are_normalised_in_float32():
    out = BunchNorm(3, 4)([torch.randn(4, 3).bfloat16() for _ in range(2)])
    assert all(view.dtype == torch.float32 for view in out)


def test_bunches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="TWIST bunches do not fit: bunch_size=4, 6 images"):
        BunchNorm(3, 4)([torch.randn(6, 3)])


def test_second_stage_is_self_labelling(make_method, step):
    method = make_method("twist", **SMALL, self_label_epoch=6)
    first = step(method, progress=Progress(59, 100, 5, 10))
    second = step(method, progress=Progress(60, 100, 6, 10))
    assert "consistency" in first and set(second) == {"loss", "sharpness", "diversity"}
    assert not second["diversity"].requires_grad
    second["loss"].backward()
    assert method.backbone[1].weight.grad.abs().sum() > 0


def test_second_stage_from_the_first_epoch(make_method, step):
    method = make_method("twist", **SMALL, self_label_epoch=0, momentum_teacher=True)
    assert "consistency" not in step(method, progress=Progress(0, 100, 0, 10))
    assert method.teacher_momentum(Progress(0, 100, 0, 10)) == 1.0


def test_teacher_momentum_ends_with_the_first_stage(make_method):
    method = make_method("twist", **SMALL, self_label_epoch=8, momentum_teacher=True)
    assert method.teacher_momentum(Progress(0, 100, 0, 10)) == pytest.approx(0.996)
    assert method.teacher_momentum(Progress(80, 100, 8, 10)) == 1.0
    assert method.teacher_momentum(Progress(99, 100, 9, 10)) == 1.0


def test_quantile_rises_as_in_the_official_code(golden, make_method, step, monkeypatch):
    method = make_method("twist", **SMALL, self_label_epoch=800)
    seen, original = [], twist.twist_self_label_loss_func

    def noting(logits, quantile, *args, **kwargs):
        seen.append(quantile)
        return original(logits, quantile, *args, **kwargs)

    monkeypatch.setattr(twist, "twist_self_label_loss_func", noting)
    expected = golden("twist")["quantile_schedule(0.5->0.6,50ep,625it)"]
    for index in map(int, expected):
        step(method, progress=Progress(800 * 625 + index, 850 * 625, 800 + index // 625, 850))
    assert seen == pytest.approx(list(expected.values()), rel=1e-12)


def test_lam1_weighs_sharpness(make_method, step):
    plain = step(make_method("twist", **SMALL))
    vit = step(make_method("twist", **SMALL, lam1=-0.6))
    expected = plain["loss"] - 0.6 * plain["sharpness"]
    torch.testing.assert_close(vit["loss"], expected)


def test_the_head_of_a_vit_starts_with_small_weights_and_no_biases():
    torch.manual_seed(0)
    head = TwistHead(64, TWISTParams(256, 128, head_init="trunc_normal"))
    layers = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.any()
    with pytest.raises(UserError, match="method_kwargs.head_init"):
        TWISTParams(head_init="zeros")
