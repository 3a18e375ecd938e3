"""The optimisers that wait for no device: they compute what solo-learn's and torch's own do."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from torch import nn

from solo_minent import host
from solo_minent.host.optimizers import Lars, give_buffers, place_state, with_fused

STEPS = 6
SETTINGS = {"lr": 0.3, "momentum": 0.9, "eta": 0.02}


def tensors():
    """Weights of several layers: a matrix, a bias, a scalar, zeros, and one without gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (7,), (3, 4, 2, 2), (), (4, 3), (5, 5)]
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    made[4].zero_()
    return [nn.Parameter(x) for x in made]


def gradients(step):
    """Of each weight; in step 2 one is zero, the last weight has none before step 3."""
    generator = torch.Generator().manual_seed(1 + step)
    found = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in tensors()]
    if step == 2:
        found[0].zero_()
    return [*found[:-1], None if step < 3 else found[-1]]


def groups(params, decay):
    """As of a run: another rate and no decay in the second."""
    return [
        {"params": params[:3], "weight_decay": decay},
        {"params": params[3:], "weight_decay": 0.0, "lr": 0.05},
    ]


def train(make, decay=0.01, steps=range(STEPS), params=None, optimizer=None):
    params = tensors() if params is None else params
    optimizer = make(groups(params, decay)) if optimizer is None else optimizer
    if isinstance(optimizer, torch.optim.SGD):
        optimizer.register_step_pre_hook(give_buffers)
    for step in steps:
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    return params, optimizer


def formula(decay, exclude, clip, dampening, nesterov):
    """You et al., 2017, equation 6, with solo-learn's conventions, one tensor at a time."""
    params, velocity = [p.detach().clone() for p in tensors()], {}
    for step in range(STEPS):
        for k, (p, g) in enumerate(zip(params, gradients(step), strict=True)):
            if g is None:
                continue
            lr, b = (SETTINGS["lr"], decay) if k < 3 else (0.05, 0.0)
            if (p.ndim != 1 or not exclude) and p.norm() > 0 and g.norm() > 0:
                trust = SETTINGS["eta"] * p.norm() / (g.norm() + b * p.norm() + 1e-8)
                g = (min(trust / lr, 1) if clip else trust) * (g + b * p)
            v = velocity.get(k)
            velocity[k] = v = g if v is None else SETTINGS["momentum"] * v + (1 - dampening) * g
            p -= lr * (g + SETTINGS["momentum"] * v if nesterov else v)
    return params


@pytest.mark.parametrize("decay", [0.01, 0.0])
@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.3, False), (0.0, True)])
def test_lars_is_the_formula(decay, exclude, clip, dampening, nesterov):
    how = {"exclude_bias_n_norm": exclude, "clip_lr": clip}
    how |= {"dampening": dampening, "nesterov": nesterov}
    params, _ = train(lambda g: Lars(g, **SETTINGS, **how), decay)
    expected = formula(decay, exclude, clip, dampening, nesterov)
    for found, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_lars_is_solo_learns(exclude, clip):
    importlib.import_module("solo_minent.plugin")  # solo-learn can be imported
    lars = importlib.import_module("solo.utils.lars")

    def theirs(groups):
        if host.HOST == "source":
            return lars.LARS(groups, **SETTINGS, clip_lr=clip, exclude_bias_n_norm=exclude)
        sgd = torch.optim.SGD(groups, lr=SETTINGS["lr"], momentum=SETTINGS["momentum"])
        return lars.LARSWrapper(sgd, SETTINGS["eta"], clip, exclude_bias_n_norm=exclude)

    params, ours = train(lambda g: Lars(g, **SETTINGS, clip_lr=clip, exclude_bias_n_norm=exclude))
    others, optimizer = train(theirs)
    for found, wanted in zip(params, others, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    # Each goes on from the other's state.
    keys = [set(state) for state in ours.state_dict()["state"].values()]
    assert keys == [{"momentum_buffer"}] * len(params)
    fresh = Lars(groups([nn.Parameter(p.detach().clone()) for p in others], 0.01), **SETTINGS)
    own = [{k: v for k, v in group.items() if k != "params"} for group in fresh.param_groups]
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group, settings in zip(fresh.param_groups, own, strict=True):  # as a run does
        group |= {**settings, "clip_lr": clip, "exclude_bias_n_norm": exclude}
    steps = range(STEPS, STEPS + 3)
    inherited = [p for group in fresh.param_groups for p in group["params"]]
    train(None, steps=steps, params=inherited, optimizer=fresh)
    train(None, steps=steps, params=params, optimizer=ours)
    for found, wanted in zip(inherited, params, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_lars_leaves_gradients_as_they_are_and_runs_a_closure():
    params = tensors()
    optimizer = Lars(params, **SETTINGS, weight_decay=0.1)

    def closure():
        for parameter, gradient in zip(params, gradients(3), strict=True):
            parameter.grad = gradient
        return 7

    assert optimizer.step(closure) == 7
    assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients(3), strict=True))


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"amsgrad": True, "betas": (0.8, 0.99)}),
        (torch.optim.AdamW, {}),
    ],
)
def test_fused_computes_the_same_and_goes_on_from_the_other(kind, kwargs):
    fused = with_fused(kind.__name__.lower(), kwargs)
    assert fused == {**kwargs, "fused": True}
    wanted, plain = train(lambda g: kind(g, lr=0.01, **kwargs))
    found, optimizer = train(lambda g: kind(g, lr=0.01, **fused))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert plain.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    for saved in (plain, optimizer):  # and the other way round
        params = [nn.Parameter(p.detach().clone()) for p in wanted]
        how = fused if saved is plain else kwargs
        fresh = kind(groups(params, 0.01), lr=0.01, **how)
        fresh.load_state_dict(copy.deepcopy(saved.state_dict()))
        for group in fresh.param_groups:
            group["fused"] = how.get("fused")
        place_state(fresh)
        train(None, steps=range(STEPS, STEPS + 2), params=params, optimizer=fresh)
        straight, _ = train(lambda g: kind(g, lr=0.01, **kwargs), steps=range(STEPS + 2))
        for a, b in zip(params, straight, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_first_step_that_a_loss_scale_leaves_out_leaves_no_momentum(monkeypatch):
    """torch's fused SGD left memory as it was found: here NaN."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, **with_fused("sgd", {"momentum": 0.9}))
    optimizer.register_step_pre_hook(give_buffers)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (math.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weight.detach(), torch.full((4,), 1 - 0.1 - 0.19))


def test_a_way_that_was_chosen_stays():
    for key in ("fused", "foreach", "capturable", "differentiable"):
        assert with_fused("adam", {key: False}) == {key: False}
    assert with_fused("lars", {"momentum": 0.9}) == {"momentum": 0.9}
    assert with_fused("sgd", {"dampening": 0.1}) == {"dampening": 0.1}  # see `give_buffers`


def test_counts_of_steps_lie_where_the_optimizer_wants_them():
    weight = nn.Parameter(torch.ones(2, device="meta"))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for fused, place in ((True, "meta"), (False, "cpu")):
        optimizer.param_groups[0]["fused"] = fused
        start = torch.zeros(()) if fused else torch.zeros((), device="cpu")
        optimizer.state[weight] = {"step": start}
        place_state(optimizer)
        assert optimizer.state[weight]["step"].device.type == place


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("to", [torch.channels_last, torch.contiguous_format])
def test_momentum_lies_as_the_weights_do(name, to):
    """A run goes on with another order in memory: a fused step would mix elements up."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    kwargs = with_fused(name, {"momentum": 0.9} if name == "sgd" else {})
    generator = torch.Generator().manual_seed(0)
    start, *steps = torch.randn(5, 4, 3, 3, 3, generator=generator)

    def train(optimizer, steps):
        (weight,) = optimizer.param_groups[0]["params"]
        for gradient in steps:
            weight.grad = torch.empty_like(weight).copy_(gradient)
            optimizer.step()
        return weight

    orders = {torch.channels_last, torch.contiguous_format}
    first = nn.Parameter(start.clone(memory_format=(orders - {to}).pop()))
    optimizer = kind([first], lr=0.1, **kwargs)
    weight = train(optimizer, steps[:2])
    other = nn.Parameter(weight.detach().clone(memory_format=to))
    further = kind([other], lr=0.1, **kwargs)
    further.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    place_state(further)
    torch.testing.assert_close(train(further, steps[2:]), train(optimizer, steps[2:]))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_a_run_has_them(plain, run_config, backbone, name):
    config = run_config("plain", optimizer={"name": name, "kwargs": {}})
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=3)
    module.fused = True
    optimizer = module.configure_optimizers()["optimizer"]
    if name == "lars":
        assert type(optimizer) is Lars
    else:
        assert all(group["fused"] is True for group in optimizer.param_groups)
