"""solo-learn's LinearModel with several classifiers and an optimiser of ours, on either version."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from solo_minent import host


class Pair(nn.Module):
    """Two linear layers on the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, features):
        self.further_logits = [self.second(features)]
        return self.first(features)


def fitted(backbone, loaders, trainer, classifier, make_optimizer):
    config = host.LinearConfig(num_classes=3, max_epochs=2, batch_size=8, scheduler="none")
    module = host.linear_probe(backbone, config, classifier, make_optimizer)
    fit = trainer(2)
    _, labelled = loaders()
    fit.fit(module, labelled, labelled)
    return module, fit


def test_further_classifiers_train_as_if_they_were_alone(backbone, loaders, trainer):
    torch.manual_seed(1)
    pair = Pair()
    alone = [nn.Linear(8, 3), nn.Linear(8, 3)]
    alone[0].load_state_dict(pair.first.state_dict())
    alone[1].load_state_dict(pair.second.state_dict())
    start = pair.second.weight.detach().clone()

    def both(classifier):
        groups = [
            {"params": list(classifier.first.parameters()), "lr": 0.5},
            {"params": list(classifier.second.parameters()), "lr": 0.01},
        ]
        return torch.optim.SGD(groups, momentum=0.9)

    module, fit = fitted(backbone, loaders, trainer, pair, both)
    assert isinstance(module, type(host.linear_probe(backbone, host.LinearConfig(3))))
    assert 0 <= fit.callback_metrics["val_acc1"] <= 100
    assert "train_loss" not in fit.callback_metrics
    for layer, theirs, lr in ((pair.first, alone[0], 0.5), (pair.second, alone[1], 0.01)):
        rate = lr
        fitted(
            backbone,
            loaders,
            trainer,
            theirs,
            lambda head: torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9),  # noqa: B023
        )
        assert torch.allclose(layer.weight, theirs.weight, atol=1e-6)
        assert torch.allclose(layer.bias, theirs.bias, atol=1e-6)
    assert (pair.second.weight - start).abs().max() > 1e-4


def test_solo_learns_own_optimiser_is_the_default(backbone):
    config = host.LinearConfig(num_classes=3, lr=0.25, scheduler="none", optimizer="adam")
    module = host.linear_probe(backbone, config)
    made = module.configure_optimizers()
    assert isinstance(made, torch.optim.Adam) and made.param_groups[0]["lr"] == 0.25
    assert isinstance(module.classifier, nn.Linear)
    from solo.methods import METHODS

    assert isinstance(module, METHODS["linear"])
    assert type(module) is type(host.linear_probe(backbone, config))


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_closures_run_before_a_step(backbone, loaders, trainer, name):
    """Lightning passes forward and backward as a closure: our optimisers must see new gradients."""
    from timm.optim import Lars

    seen = []
    torch.manual_seed(1)
    classifier = nn.Linear(8, 3)

    def make(head):
        kind = {"sgd": torch.optim.SGD, "lars": Lars}[name]
        optimizer = kind(head.parameters(), lr=0.1)
        optimizer.register_step_post_hook(
            lambda *_: seen.append(head.weight.grad is not None and head.weight.grad.norm().item())
        )
        return optimizer

    start = classifier.weight.detach().clone()
    fitted(backbone, loaders, trainer, classifier, make)
    assert len(seen) == 4 and all(norm > 0 for norm in seen)
    assert not torch.equal(start, classifier.weight)
