"""solo-learn's own methods under today's Trainer: fit, validate, save, resume."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from solo_minent import host

MOMENTUM = {
    "wheel": {"base_tau_momentum": 0.9, "final_tau_momentum": 1.0, "momentum_classifier": True},
    "source": {},
}[host.HOST]


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins", "byol", "simsiam"])
def test_fit_and_validate(name, solo_method, loaders, trainer):
    momentum = MOMENTUM if name == "byol" else {}
    module = solo_method(name, **momentum)
    fit = trainer(2)
    fit.fit(module, *loaders(8))
    assert fit.global_step == 2
    logged = fit.callback_metrics
    assert torch.isfinite(logged["train_class_loss"])
    assert 0 <= logged["val_acc1"] <= logged["val_acc5"] == 100
    if name == "byol":
        assert torch.isfinite(logged["momentum_val_loss"])
        assert logged["tau"] > 0.9
        pairs = zip(*(m.parameters() for m in module.momentum_pairs[0]), strict=True)
        assert any(not torch.equal(p, q) for p, q in pairs)


class Rates(Callback):
    def __init__(self, path=None) -> None:
        self.rates, self.path = [], path

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_epoch_end(self, trainer, module):
        if self.path and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("scheduler", ["warmup_cosine", "step"])
def test_static_lr_survives_a_resume(scheduler, solo_method, loaders, trainer, tmp_path):
    path = tmp_path / "first.ckpt"
    whole, rest = Rates(path), Rates()
    trainer(3, callbacks=[whole]).fit(solo_method("simsiam", scheduler), loaders(8)[0])
    torch.load(path, weights_only=True)
    module = solo_method("simsiam", scheduler)
    trainer(3, callbacks=[rest]).fit(module, loaders(8)[0], ckpt_path=path)
    assert rest.rates == whole.rates[1:]
    static = [rates[-1] for rates in whole.rates[1:]]
    assert static == [0.1, 0.1], "the predictor's rate is not scheduled"
    assert len({rates[0] for rates in whole.rates}) > 1
