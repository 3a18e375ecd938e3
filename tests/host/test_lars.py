"""LARS of either host through a Trainer, against the formula and against plain SGD."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from solo_minent import host

ETA, LR, DECAY, MOMENTUM = 0.02, 0.5, 0.01, 0.9


class Steps(Callback):
    """Parameters before, and gradients of, every optimiser step."""

    def __init__(self, module) -> None:
        self.module, self.before, self.grads = module, [], []

    def on_after_backward(self, trainer, module):
        named = [(n, p) for n, p in module.named_parameters() if p.grad is not None]
        self.before.append({n: p.detach().double().clone() for n, p in named})
        self.grads.append({n: p.grad.double().clone() for n, p in named})


def lars_reference(before, grads, exclude, clip):
    """You et al., 2017, eq. 6 in float64, momentum as in torch; returns the last parameters."""
    velocity = {name: torch.zeros_like(p) for name, p in before[0].items()}
    params = {name: p.clone() for name, p in before[0].items()}
    for grad in grads:
        for name, p in params.items():
            classifier = name.startswith("classifier")
            decay, lr = (0.0, 0.05) if classifier else (DECAY, LR)
            step = grad[name].clone()
            if p.ndim > 1 or not exclude:
                p_norm, g_norm = p.norm(), step.norm()
                if p_norm > 0 and g_norm > 0:
                    trust = ETA * p_norm / (g_norm + decay * p_norm + 1e-8)
                    if clip:
                        trust = torch.clamp(trust / lr, max=1.0)
                    step = trust * (step + decay * p)
            velocity[name] = MOMENTUM * velocity[name] + step
            p -= lr * velocity[name]
    return params


def fit(run_config, backbone, loaders, trainer, **optimizer):
    torch.manual_seed(0)
    settings = {"lr": LR, "weight_decay": DECAY} | optimizer
    config = run_config("plain", optimizer=settings)
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=3)
    steps = Steps(module)
    trainer(2, callbacks=[steps]).fit(module, loaders()[0])
    return steps, {n: p.detach().double() for n, p in module.named_parameters()}


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_equals_the_formula(plain, run_config, backbone, loaders, trainer, exclude, clip):
    kwargs = {"eta": ETA, "momentum": MOMENTUM, "clip_lr": clip}
    optimizer = {"name": "lars", "exclude_bias_n_norm": exclude, "kwargs": kwargs}
    steps, after = fit(run_config, backbone, loaders, trainer, **optimizer)
    assert len(steps.grads) == 4
    # Gradients are the run's own, so each step's error does not feed the next one's gradient.
    expected = lars_reference(steps.before, steps.grads, exclude, clip)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)


def test_tiny_eta_freezes_and_plain_sgd_does_not(plain, run_config, backbone, loaders, trainer):
    start = {k: v.clone() for k, v in backbone.state_dict().items()}
    moved = {}
    for name, kwargs in (("lars", {"eta": 1e-12}), ("sgd", {})):
        backbone.load_state_dict(start)
        fit(run_config, backbone, loaders, trainer, name=name, kwargs=kwargs)
        moved[name] = (backbone[0].weight - start["0.weight"]).norm().item()
    assert moved["lars"] < 1e-6
    assert moved["sgd"] > 1e-3
