"""Batches, optimisers and schedules of linear evaluation and fine-tuning."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from solo_minent.errors import UserError
from solo_minent.evaluation import training
from solo_minent.schema import DataConfig, FinetuneConfig, LinearConfig


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 5]), (3, [3]), (1, [1]), (5, [5])],
)
def test_batches_hold_every_row_once_and_never_one_row_alone(count, sizes):
    batches = training.ShuffledBatches(count, 4, seed=3)
    first, second = list(batches), list(batches)
    assert [len(b) for b in first] == sizes and len(batches) == len(sizes)
    for epoch in (first, second):
        assert sorted(sum(epoch, [])) == list(range(count))
    assert count < 8 or first != second
    assert first == list(training.ShuffledBatches(count, 4, seed=3))
    assert count < 8 or first != list(training.ShuffledBatches(count, 4, seed=4))


def test_exponential_ends_in_the_last_epoch():
    settings = LinearConfig(max_epochs=5, scheduler="exponential")
    rates = [training.epoch_lr(settings, 1e-2, 1e-6)(epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-6], rel=1e-12)
    one = LinearConfig(max_epochs=1, scheduler="exponential")
    assert training.epoch_lr(one, 1e-2, 1e-6)(0) == 1e-2


def torch_rates(scheduler, epochs, lr, **kwargs):
    """The rates of torch's own scheduler, stepped after each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, rates = scheduler(optimizer, **kwargs), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_is_that_of_the_published_scripts():
    settings = LinearConfig(max_epochs=100, scheduler="cosine")
    ours = [training.epoch_lr(settings, 0.2, 2e-3)(epoch) for epoch in range(100)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    assert ours == pytest.approx(torch_rates(schedule, 100, 0.2, T_max=100, eta_min=2e-3), rel=1e-9)
    # MEC: lr = 0.5 lr0 (1 + cos(pi epoch / epochs)), for lr0 = 0.03 * 4096 / 256.
    mec = [training.epoch_lr(settings, 0.48)(epoch) for epoch in (0, 25, 50, 99)]
    closed = [0.24 * (1 + math.cos(math.pi * epoch / 100)) for epoch in (0, 25, 50, 99)]
    assert mec == pytest.approx(closed, rel=1e-12) and mec[2] == pytest.approx(0.24)


@pytest.mark.parametrize(("lr", "gamma"), [(10.0, 0.1), (0.005, 0.2)])
def test_step_is_that_of_the_published_script(lr, gamma):
    settings = FinetuneConfig(max_epochs=20, scheduler="step", lr_decay_epochs=[5, 10, 15])
    ours = [training.epoch_lr(settings, lr, gamma=gamma)(epoch) for epoch in range(20)]
    schedule = torch.optim.lr_scheduler.StepLR
    assert ours == pytest.approx(torch_rates(schedule, 20, lr, step_size=5, gamma=gamma))
    assert ours[4] == lr and ours[5] == pytest.approx(lr * gamma)
    assert ours[19] == pytest.approx(lr * gamma**3)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_larc_steps_by_the_formula(weight_decay):
    """adaptive = 0.001 |p| / (|g| + wd |p| + 1e-8); g <- (g + wd p) adaptive; SGD, momentum 0.9."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(5, 3).double()), nn.Parameter(torch.zeros(5).double())
    settings = LinearConfig(optimizer="larc", momentum=0.9, weight_decay=weight_decay)
    optimizer = training.make_optimizer(settings, [{"params": [weight, bias], "lr": 0.48}])
    expected = [p.detach().clone() for p in (weight, bias)]
    buffers = [torch.zeros_like(p) for p in expected]
    for _ in range(4):
        for parameter in (weight, bias):
            parameter.grad = torch.randn_like(parameter)
        for p, buffer, grad in zip(expected, buffers, (weight.grad, bias.grad), strict=True):
            step = grad.clone()
            if p.norm() > 0 and grad.norm() > 0:  # the bias starts at 0: not adapted
                adaptive = 0.001 * p.norm() / (grad.norm() + weight_decay * p.norm() + 1e-8)
                step = (grad + weight_decay * p) * adaptive
            buffer.mul_(0.9).add_(step)
            p.sub_(0.48 * buffer)
        optimizer.step()
    assert torch.allclose(weight, expected[0], rtol=1e-12, atol=0)
    assert torch.allclose(bias, expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("larc", "Lars")]
)
def test_optimisers_keep_the_rate_of_each_group(name, kind):
    layer = nn.Linear(2, 2)
    settings = LinearConfig(optimizer=name, momentum=0.7, weight_decay=0.1)
    groups = [{"params": [layer.weight], "lr": 0.3}, {"params": [layer.bias], "lr": 0.1}]
    optimizer = training.make_optimizer(settings, groups)
    assert type(optimizer).__name__ == kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.1]
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


def test_heads_of_the_protocols():
    torch.manual_seed(0)
    norm, linear = training.make_head(LinearConfig(head_norm="batchnorm", init="normal"), 400, 50)
    assert not list(norm.parameters()) and norm.eps == 1e-6
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(linear.bias, torch.zeros(50))
    plain = training.make_head(LinearConfig(), 400, 50)
    assert plain.weight.abs().max() <= 1 / math.sqrt(400)  # torch's default
    assert plain.weight.std() > 0.02


def test_the_central_view_is_the_published_resize_and_crop():
    """int(S * 8 / 7): 36 pixels for crops of 32, 73 for 64, 256 for 224."""
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (90, 120, 3), np.uint8))
    settings = LinearConfig(resize=256, interpolation="bicubic")
    for size, short in ((32, 36), (64, 73), (224, 256)):
        data = DataConfig("custom", image_size=size, mean=[0.0] * 3, std=[1.0] * 3)
        pixels = training.central_view(settings, data)(picture)
        wide = picture.resize((int(short * 120 / 90), short), Image.BICUBIC)
        left, top = round((wide.width - size) / 2), round((short - size) / 2)
        expected = np.asarray(wide)[top : top + size, left : left + size] / 255
        assert pixels.shape == (3, size, size)
        assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_the_random_view_crops_and_flips():
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1))
    picture = Image.fromarray(np.stack([ramp] * 3, -1))
    data = DataConfig("custom", image_size=16, mean=[0.0] * 3, std=[1.0] * 3)
    view = training.random_view(LinearConfig(crop_scale=[0.2, 0.3]), data)
    torch.manual_seed(0)
    slopes = [float(v[0, 0, -1] - v[0, 0, 0]) for v in (view(picture) for _ in range(40))]
    assert {slope > 0 for slope in slopes} == {True, False}
    # A crop of a share s and a ratio 3/4 to 4/3 sees sqrt(s / r) of the width.
    widths = [abs(slope) * 255 / 236 for slope in slopes]
    assert min(widths) > 0.3 and max(widths) < 0.65


class Line(pl.LightningModule):
    """One weight with gradient 1; it remembers the rates of its steps."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.weight, self.stop_at, self.rates = nn.Parameter(torch.zeros(1)), stop_at, []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=7.0)


def test_a_fit_takes_the_rates_of_its_epochs():
    line = Line()
    training.fit(line, DataLoader(range(3)), 2, [lambda epoch: 10.0**-epoch], "cpu")
    assert line.rates == [1.0] * 3 + [0.1] * 3
    assert line.weight.item() == pytest.approx(-3.3) and line.weight.device.type == "cpu"


def test_ctrl_c_ends_a_fit_as_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        training.fit(Line(stop_at=2), DataLoader(range(3)), 2, [lambda _: 1.0], "cpu")


def test_accuracies_in_one_piece_and_in_chunks(monkeypatch):
    torch.manual_seed(0)
    head, features, labels = nn.Linear(4, 7), torch.randn(50, 4), torch.randint(7, (50,))
    ranked = head(features).argsort(1, descending=True)
    expected = {
        "top1": 100 * (ranked[:, 0] == labels).double().mean().item(),
        "top5": 100 * (ranked[:, :5] == labels[:, None]).any(1).double().mean().item(),
    }
    assert training.accuracies(head, features, labels) == pytest.approx(expected)
    monkeypatch.setattr(training, "CHUNK", 7)
    assert training.accuracies(head, features, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0, 2], "labels do not suit a linear classifier: 0 to 2 with 2 classes"),
        ([0, 1], [0, -1], "labels do not suit a linear classifier: -1 to 0 with 2 classes"),
        ([1, 1], [0, 1], "all 2 training images are of class 1"),
        ([0, 1], [], "no labelled images: the test split is empty"),
        ([], [0, 1], "no labelled images: the training split is empty"),
    ],
)
def test_labels_that_do_not_suit(train, test, message):
    with pytest.raises(UserError, match=message):
        training.check_labels(np.array(train), np.array(test), 2)


def test_a_batch_larger_than_the_set():
    training.check_batch("evaluation.linear.batch_size", 8, 8)
    with pytest.raises(UserError, match="batch_size is larger than the training set: 9, of 8 im"):
        training.check_batch("evaluation.linear.batch_size", 9, 8)
