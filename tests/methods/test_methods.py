"""What every method must do, whatever its objective; a new one is in here by itself."""

import pytest
import torch
from torch import nn

from solo_minent.errors import UserError
from solo_minent.methods import Progress, available

SMALL = {
    "minent": {"heads": [8, 4], "hidden_dim": 16},
    "mec": {"hidden_dim": 16, "output_dim": 8, "pred_hidden_dim": 4},
    "twist": {"hidden_dim": 16, "output_dim": 8, "bunch_size": 8},
    "corinfomax": {"hidden_dim": 16, "output_dim": 4},
}


@pytest.mark.parametrize("name", available())
def test_loss_reaches_every_learnable_parameter(make_method, step, name):
    method = make_method(name, **SMALL.get(name, {}))
    terms = step(method)
    terms["loss"].backward()
    groups = method.extra_params()
    learnable = [p for group in groups for p in group["params"]] + list(
        method.backbone.parameters()
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnable)
    left = {id(p) for p in method.parameters() if p.requires_grad} - {id(p) for p in learnable}
    assert not left, "a parameter that no optimiser group holds"


@pytest.mark.parametrize("name", available())
def test_every_term_is_a_finite_scalar_without_host_round_trip(make_method, step, name):
    terms = step(make_method(name, **SMALL.get(name, {})))
    assert terms["loss"].requires_grad
    for value in terms.values():
        assert isinstance(value, torch.Tensor) and value.ndim == 0 and value.isfinite()
    assert set(available()[name].monitors) <= set(terms)


@pytest.mark.parametrize("name", available())
def test_twenty_steps_lower_the_loss(make_method, step, name):
    method = make_method(name, **SMALL.get(name, {}))
    groups = [{"params": method.backbone.parameters()}, *method.extra_params()]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    losses = []
    # CorInfoMax's covariance starts at the identity, an easy value that the first steps forget.
    for i in range(25):
        loss = step(method, progress=Progress(i, 25, i, 25))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method.teacher:
            method.update_teacher(Progress(i, 25, i, 25))
        losses.append(loss.item())
    assert losses[-1] < losses[5]


def test_mec_schedules_equal_the_official_ones(golden, make_method):
    method = make_method("mec", output_dim=2048, hidden_dim=4, pred_hidden_dim=4)
    full, tiny = golden("mec")["schedules"], golden("mec")["schedules_tiny"]
    assert (len(full["index"]), len(tiny["momentum"])) == (8, 60)
    for run, index, lamda_inv, momentum in (
        (full, full["index"], "lamda_inv(256->32,warmup10)", "teacher_momentum(0.996->1)"),
        (tiny, range(60), "lamda_inv", "momentum"),
    ):
        epochs, steps = run["epochs"], run["iters_per_epoch"]
        for i, *expected in zip(index, run[lamda_inv], run[momentum], strict=True):
            progress = Progress(i, epochs * steps, i // steps, epochs)
            found = method.lamda_inv(1024, progress), method.teacher_momentum(progress)
            assert found == pytest.approx(expected, rel=1e-12), i


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_mec_lambda_warm_up_fits_into_a_short_run(make_method, epochs):
    method = make_method("mec", **SMALL["mec"])
    values = [
        method.lamda_inv(8, Progress(i, 4 * epochs, i // 4, epochs)) for i in range(4 * epochs)
    ]
    final = 8 / 32
    assert values[0] == pytest.approx(8 * final)
    assert values[-1] == pytest.approx(final)
    assert values == sorted(values, reverse=True)


def test_mec_is_blind_to_a_bias_before_its_last_norm(make_method):
    method = make_method("mec", **SMALL["mec"])
    last_linear, last_norm = method.projector[-2], method.projector[-1]
    assert last_linear.bias is None and not last_norm.affine


def test_teacher_follows_by_exponential_moving_average(make_method):
    method = make_method("mec", **SMALL["mec"], base_momentum=0.9)
    old = [p.clone() for p in method.teacher_projector.parameters()]
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1.0)
    assert method.update_teacher(Progress(0, 10, 0, 1)) == pytest.approx(0.9)
    for teacher, before, student in zip(
        method.teacher_projector.parameters(), old, method.projector.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.9 * before + 0.1 * student)
        assert not teacher.requires_grad


def test_teacher_starts_as_the_student_and_sees_large_crops_only(make_method, step):
    method = make_method("twist", **SMALL["twist"], momentum_teacher=True)
    seen = []
    method.teacher_backbone.register_forward_hook(lambda *_: seen.append(1))
    for teacher, student in zip(
        method.teacher_projector.parameters(), method.projector.parameters(), strict=True
    ):
        assert torch.equal(teacher, student)
    terms = step(method, small=3)
    assert len(seen) == 2
    assert {"consistency", "sharpness", "diversity"} < set(terms)


def test_minent_target_entropy_is_a_share_of_the_code_book(make_method, step):
    method = make_method("minent", **SMALL["minent"])
    healthy = step(method, batch=64)["target_entropy"]
    collapsed = make_method("minent", heads=[8], hidden_dim=16, norm="none")
    for head in collapsed.projector.heads:
        nn.init.zeros_(head[-1].weight)
    assert 0.5 < healthy <= 1
    assert step(collapsed, batch=64)["target_entropy"] == 0


def test_one_head_is_a_list_of_one(make_method, step):
    method = make_method("minent", heads=[128], hidden_dim=16)
    assert [head[-1].out_features for head in method.projector.heads] == [128]
    assert step(method)["loss"].isfinite()


def test_corinfomax_projector_with_and_without_batch_norm(make_method):
    norms = {
        flag: sum(
            isinstance(m, nn.BatchNorm1d)
            for m in make_method("corinfomax", **SMALL["corinfomax"], batch_norm=flag).modules()
        )
        for flag in (False, True)
    }
    assert norms == {False: 0, True: 2}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("minent", {"heads": []}, "MinEnt heads are wrong"),
        ("minent", {"heads": [128, 1]}, "MinEnt heads are wrong"),
        ("minent", {"norm": "batch"}, "method_kwargs.norm is unknown: batch"),
        ("minent", {"num_layers": 0}, "method_kwargs.num_layers is out of range: 0"),
        ("mec", {"order": 3}, "MEC order is not even: 3"),
        ("mec", {"order": 0}, "MEC order is not even: 0"),
        ("mec", {"eps": 0.0}, "method_kwargs.eps is out of range: 0.0"),
        ("mec", {"base_momentum": 1.5}, "base_momentum to .* does not rise within"),
        ("twist", {"activation": "tanh"}, "method_kwargs.activation is unknown: tanh"),
        ("twist", {"output_dim": 1}, "method_kwargs.output_dim is out of range: 1"),
        ("twist", {"quantile_start": 0.0}, "method_kwargs.quantile_start is out of range"),
        ("twist", {"tau": 0.0}, "method_kwargs.tau is out of range: 0.0"),
        ("twist", {"base_momentum": 5.0}, "base_momentum to .* does not rise within"),
        ("twist", {"lam1": float("nan")}, "method_kwargs.lam1 is out of range: nan"),
        ("twist", {"self_label_epoch": -1}, "method_kwargs.self_label_epoch is out of range: -1"),
        ("corinfomax", {"la_R": 1.0}, "method_kwargs.la_R is out of range: 1.0"),
        ("corinfomax", {"output_dim": 0}, "method_kwargs.output_dim is out of range: 0"),
    ],
)
def test_wrong_hyper_parameters_are_refused_in_one_line(name, wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        available()[name].Params(**wrong)
    assert "\n" not in str(caught.value)
    assert "method_kwargs." in str(caught.value)
