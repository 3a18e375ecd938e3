"""Linear evaluation through solo-learn's LinearModel: cached features, augmentation, sweeps."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from solo_minent.config import load_recipe, protocol
from solo_minent.errors import UserError
from solo_minent.evaluation import linear, training
from solo_minent.evaluation.linear import Frozen, linear_accuracy, linear_eval
from solo_minent.evaluation.targets import Features, Target, features_of, load_target
from solo_minent.schema import LinearConfig


@pytest.fixture(scope="module")
def digits():
    """Real digits as features: pixels in [0, 1], 1,347 to train on and 450 held out."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.astype(np.float32) / 16, y, random_state=0, stratify=y)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Features(train, train_labels, test, test_labels)


QUICK = {"max_epochs": 60, "batch_size": 128, "lr": 0.05, "final_lr": 1e-3}


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(**QUICK),
        LinearConfig(  # MEC's head and optimiser
            max_epochs=30,
            batch_size=128,
            optimizer="larc",
            lr=5.0,
            scheduler="step",
            lr_decay_epochs=[15, 25],
            weight_decay=0.0,
            head_norm="batchnorm",
            init="normal",
        ),
        "corinfomax",
    ],
    ids=["adam", "larc", "corinfomax"],
)
def test_equals_logistic_regression_within_a_point(digits, config):
    if isinstance(config, str):  # the protocol, but for its augmentation
        lines = [*protocol("linear", config), "evaluation.linear.augment=false"]
        config = load_recipe("digits/mec", lines).evaluation.linear
    ours = linear_accuracy(digits, 10, config, progress=False)
    reference = LogisticRegression(max_iter=1000).fit(digits.train, digits.train_labels)
    assert ours["top1"] == pytest.approx(
        100 * reference.score(digits.test, digits.test_labels), abs=1.0
    )
    assert ours["top1"] < ours["top5"] <= 100 and ours["train_top1"] > ours["top1"]


def test_the_seed_decides_and_the_global_generator_is_left_alone(digits):
    config = LinearConfig(max_epochs=3)
    torch.manual_seed(5)
    first = linear_accuracy(digits, 10, config, seed=1, progress=False)
    state = torch.get_rng_state()
    assert first == linear_accuracy(digits, 10, config, seed=1, progress=False)
    assert first != linear_accuracy(digits, 10, config, seed=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_classes_have_a_top5(digits):
    few = Features(digits.train, digits.train_labels % 2, digits.test, digits.test_labels % 2)
    result = linear_accuracy(few, 2, LinearConfig(max_epochs=2), progress=False)
    assert result["top5"] == 100.0


@pytest.mark.parametrize(("shift", "classes"), [(-1, 10), (0, 9)])
def test_labels_beyond_the_classes_are_refused(digits, shift, classes):
    wrong = digits._replace(train_labels=digits.train_labels + shift)
    with pytest.raises(UserError, match="labels do not suit a linear"):
        linear_accuracy(wrong, classes, progress=False)


def test_features_have_no_augmentation(digits):
    with pytest.raises(UserError, match="protocol trains on augmented images: twist"):
        linear_accuracy(digits, 10, LinearConfig(name="twist", augment=True), progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "scheduler": "exponential", "final_lr": 1e-4},
        {"optimizer": "sgd", "scheduler": "cosine", "final_lr": 1e-3, "weight_decay": 1e-3},
        {"optimizer": "larc", "scheduler": "step", "lr_decay_epochs": [1]}
        | {"head_norm": "batchnorm", "init": "normal"},
    ],
)
def test_heads_of_a_sweep_equal_heads_trained_alone(digits, changes):
    settings = LinearConfig(max_epochs=3, batch_size=100, lr=0.1, sweep=[0.01, 1.0], **changes)

    def fit(settings):
        torch.manual_seed(0)
        frozen = nn.Identity()
        frozen.num_features = 64
        batches = training.ShuffledBatches(len(digits.train), settings.batch_size, 7)
        data = TensorDataset(digits.train, digits.train_labels)
        loader = DataLoader(data, sampler=batches, batch_size=None)
        return linear._fit(frozen, loader, 10, settings, len(digits.train), "cpu", False)

    together = fit(settings)
    starts = []
    for lr, head in zip([0.1, 0.01, 1.0], together, strict=True):
        end = settings.final_lr * lr / settings.lr  # every rate falls in the same proportion
        (alone,) = fit(replace(settings, lr=lr, sweep=[], final_lr=end))
        for ours, theirs in zip(head.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
        starts.append(torch.cat([p.detach().flatten() for p in head.parameters()]))
    assert (starts[0] - starts[1]).abs().max() > 1e-3  # the rates do differ


def test_the_rate_is_chosen_on_held_out_training_images(digits):
    """Test labels that are all wrong favour a useless rate: it must not be chosen."""
    wrong = digits._replace(test_labels=(digits.test_labels + 1) % 10)
    settings = LinearConfig(**QUICK | {"lr": 1e-9, "final_lr": 1e-9, "max_epochs": 10})
    settings.sweep = [0.05, 1e-9]
    metrics, sweep = linear._on_features(wrong, 10, settings, 0, False, "cpu")
    assert [row["lr"] for row in sweep] == [1e-9, 0.05]  # each once
    useless, good = sweep
    assert good["held_out_top1"] > 90 > 50 > useless["held_out_top1"]
    assert good["top1"] < useless["top1"]
    assert metrics["top1"] == good["top1"]


def test_what_is_held_out_is_stratified_seeded_and_not_trained_on(digits):
    labels = digits.train_labels.numpy()
    settings = LinearConfig(sweep=[1.0], sweep_part=0.2)
    kept, held = linear._part(labels, settings, 3)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(held) == round(0.2 * len(labels))
    assert np.abs(np.bincount(labels[held]) - 0.2 * np.bincount(labels)).max() < 1
    again, other = (linear._part(labels, settings, seed)[1] for seed in (3, 4))
    assert (again == held).all() and (other != held).any()
    assert linear._part(labels, LinearConfig(), 3)[1] is None


@pytest.fixture
def folder(tmp_path):
    """Three classes of 8 training and 4 test images that differ in colour."""
    rng = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog", "fox")):
            place = tmp_path / "set" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 90, (20, 24, 3)) + 150 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "set"


@pytest.fixture
def run(tiny_run, folder):
    """`run("evaluation.linear.lr=1")`: a run on the folder, with a quick augmented protocol."""

    def make(*overrides):
        return tiny_run(
            "mec",
            *["data.dataset=custom", f"data.root={folder}", "data.train_images=null"],
            *["data.val_images=null", "evaluation.linear.batch_size=8"],
            *["evaluation.linear.max_epochs=3", "evaluation.linear.augment=true"],
            *["evaluation.linear.resize=256", "evaluation.linear.lr=0.01", *overrides],
        )

    return make


def test_augmented_evaluation_stores_its_protocol(run):
    config = run()
    target = load_target(config, "random")
    before = copy.deepcopy(target.backbone.state_dict())
    modes = [m.training for m in target.backbone.modules()]
    state = torch.get_rng_state()
    result = linear_eval(config, target, progress=False)
    assert json.loads((config.run_dir / "results.json").read_text()) == [result]
    assert result["evaluation"] == "linear" and result["target"] == "random"
    assert (result["train_images"], result["test_images"]) == (24, 12)
    assert 0 <= result["top1"] <= result["top5"] == 100
    assert "minent with other max_epochs, batch_size, " in result["protocol"]
    for words in ("bilinear random crops (0.08, 1) and flips", "resize 256/224", "batch 8"):
        assert words in result["protocol"]
    assert "lr 0.01 exponential to 0.001" in result["protocol"]
    assert "last epoch of 3" in result["protocol"] and "sweep" not in result
    # The target is as it was: weights, running statistics, modes, gradients, random state.
    after = target.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [m.training for m in target.backbone.modules()] == modes
    assert all(p.requires_grad for p in target.backbone.parameters())
    assert torch.equal(state, torch.get_rng_state())
    again = linear_eval(config, load_target(config, "random"), progress=False)
    assert again == result


def test_the_backbone_sees_new_crops_in_eval_mode(run, monkeypatch):
    config, seen = run(), []
    forward = Frozen.forward

    def watched(self, images):
        seen.append((images.clone(), self.backbone.training, torch.is_grad_enabled()))
        out = forward(self, images)
        assert out.dtype == torch.float32 and not out.requires_grad
        return out

    monkeypatch.setattr(Frozen, "forward", watched)
    linear_eval(config, load_target(config, "random"), progress=False)
    assert len(seen) == 3 * 3 + 1  # three epochs of three batches, then the test images
    assert not any(mode for _, mode, _ in seen)
    batches = [images for images, _, _ in seen[:-1]]
    assert all(len(images) == 8 for images in batches)
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:6])
    same = (first[:, None] == second[None]).flatten(2).all(2)
    assert not same.any()  # no crop comes twice


def test_a_sweep_over_images(run):
    config = run("evaluation.linear.sweep=[1.0,1e-4]", "evaluation.linear.sweep_part=0.25")
    result = linear_eval(config, load_target(config, "random"), progress=False)
    assert [row["lr"] for row in result["sweep"]] == [0.01, 1.0, 1e-4]
    assert (result["train_images"], result["held_out_images"]) == (18, 6)
    best = max(result["sweep"], key=lambda row: row["held_out_top1"])
    assert (result["lr"], result["top1"]) == (best["lr"], best["top1"])
    assert "lr one of 0.01, 1, 0.0001 exponential to 0.001" in result["protocol"]
    assert "rate chosen on 0.25 of the training images, held out (seed 0)" in result["protocol"]


def test_cached_features_with_a_test_transform_of_its_own(run):
    config = run("evaluation.linear.augment=false")
    result = linear_eval(config, load_target(config, "pixels"), progress=False)
    assert (
        "features computed once under bilinear resize 256/224 and centre crop" in result["protocol"]
    )
    own = linear_eval(
        run("evaluation.linear.augment=false", "evaluation.linear.resize=null"),
        load_target(config, "pixels"),
        progress=False,
    )
    assert "features computed once under the data set's test transform" in own["protocol"]


def test_features_at_hand_give_the_same_result(run):
    config = run("evaluation.linear.augment=false", "evaluation.linear.resize=null")
    target = load_target(config, "random")
    result = linear_eval(config, target, progress=False)
    outcome = linear.linear_on_features(config, features_of(target, config, False), 3, False)
    assert outcome.protocol == result["protocol"] and outcome.splits == {"train": 24, "test": 12}
    assert outcome.metrics == {key: result[key] for key in ("top1", "top5", "train_top1")}
    config.evaluation.linear.augment = True
    with pytest.raises(UserError, match="protocol trains on augmented images"):
        linear.linear_on_features(config, features_of(target, config, False), 3, False)


def test_half_precision_is_for_the_backbone_alone(run):
    class Halved(nn.Module):
        num_features = 4

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, images):
            out = self.layer(images.mean((2, 3)))
            self.seen = out.dtype
            return out

    backbone = Halved()
    out = Frozen(backbone, "bf16-mixed")(torch.rand(2, 3, 4, 4))
    assert backbone.seen == torch.bfloat16 and out.dtype == torch.float32
    config = run("evaluation.precision=bf16-mixed")
    result = linear_eval(config, Target("random", backbone, "here"), progress=False)
    assert backbone.seen == torch.bfloat16
    assert "backbone in bf16-mixed" in result["protocol"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.linear.batch_size=25"], "larger than the training set: 25, of 24 images"),
        (
            ["evaluation.linear.batch_size=20", "evaluation.linear.sweep=[1.0]"]
            + ["evaluation.linear.sweep_part=0.25"],
            "larger than the training set: 20, of 18 images",
        ),
        (["evaluation.linear.blocks=4"], "backbone has no blocks: ResNet"),
        (
            ["evaluation.linear.blocks=4", "evaluation.linear.augment=false"],
            "backbone has no blocks: ResNet",
        ),
    ],
)
def test_what_cannot_work_is_said_before_any_work(run, monkeypatch, overrides, message):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it began"))
    config = run(*overrides)
    with pytest.raises(UserError, match=message):
        linear_eval(config, load_target(config, "random"), progress=False)
    assert not (config.run_dir / "results.json").exists()


def test_one_class_is_refused(run, folder):
    for split in ("train", "val"):
        for name in ("dog", "fox"):
            for file in (folder / split / name).iterdir():
                file.unlink()
            (folder / split / name).rmdir()
    config = run()
    with pytest.raises(UserError, match="all 8 training images are of class 0"):
        linear_eval(config, load_target(config, "random"), progress=False)


def test_a_diverged_probe_is_no_result(digits):
    broken = digits._replace(train=digits.train.clone())
    broken.train[0] = float("nan")
    with pytest.raises(training.DivergedError, match="training has diverged"):
        linear_accuracy(broken, 10, LinearConfig(max_epochs=1), progress=False)


def test_a_rate_that_diverges_in_a_sweep_is_not_chosen(digits):
    heads = [nn.Linear(64, 10), nn.Linear(64, 10)]
    nn.init.constant_(heads[0].weight, float("nan"))
    found = training.accuracies_of_all(heads, digits.test, digits.test_labels)
    assert found[0] == {"top1": 0.0, "top5": 0.0} and found[1]["top5"] > 0
    with pytest.raises(training.DivergedError):
        training.accuracies_of_all(heads[:1], digits.test, digits.test_labels)
