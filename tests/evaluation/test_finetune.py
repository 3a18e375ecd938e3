"""Fine-tuning: two rates, recorded splits, and what is refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from solo_minent.data.loaders import labelled_images
from solo_minent.errors import UserError
from solo_minent.evaluation import finetune, training
from solo_minent.evaluation.finetune import Network, finetune_eval, labelled_indices
from solo_minent.evaluation.targets import load_target
from solo_minent.schema import FinetuneConfig


@pytest.fixture
def folder(tmp_path):
    """Three classes of 20, 10 and 2 training and 4 test images that differ in colour."""
    rng = np.random.RandomState(0)
    for split, counts in (("train", (20, 10, 2)), ("val", (4, 4, 4))):
        for label, (name, count) in enumerate(zip(("cat", "dog", "fox"), counts, strict=True)):
            place = tmp_path / "set" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 90, (20, 24, 3)) + 150 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{name}_{i}.png")
    return tmp_path / "set"


@pytest.fixture
def run(tiny_run, folder):
    def make(*overrides):
        return tiny_run(
            "mec",
            *["data.dataset=custom", f"data.root={folder}", "data.train_images=null"],
            *["data.val_images=null", "evaluation.finetune.batch_size=4"],
            *["evaluation.finetune.max_epochs=2", *overrides],
        )

    return make


def test_backbone_and_head_move_at_their_own_rates(run, monkeypatch):
    config = run(
        *["evaluation.finetune.scheduler=step", "evaluation.finetune.lr_decay_epochs=[1]"],
        *["evaluation.finetune.lr=0.5", "evaluation.finetune.backbone_lr=0.05"],
        *["evaluation.finetune.gamma=0.1", "evaluation.finetune.backbone_gamma=0.2"],
    )
    networks, rates, modes = [], [], []
    step = Network.training_step

    def watched(self, batch, batch_idx):
        networks.append(self)
        rates.append([group["lr"] for group in self.optimizers().param_groups])
        modes.append(all(m.training for m in self.modules()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Network, "training_step", watched)
    target = load_target(config, "random")
    before = copy.deepcopy(target.backbone.state_dict())
    result = finetune_eval(config, target, progress=False)
    assert rates == [pytest.approx(pair) for pair in [[0.5, 0.05]] * 8 + [[0.05, 0.01]] * 8]
    assert all(modes)
    trained = networks[0].backbone.state_dict()
    assert trained.keys() == before.keys()
    moved = [key for key in before if not torch.equal(before[key], trained[key])]
    assert {k for k, _ in networks[0].backbone.named_parameters()} <= set(moved)
    assert any("running_mean" in key for key in moved)
    after = target.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # a copy was trained
    assert json.loads((config.run_dir / "results.json").read_text()) == [result]
    assert (result["evaluation"], result["percent"]) == ("finetune", 100)
    assert (result["train_images"], result["test_images"]) == (32, 12)
    words = "lr 0.5 times 0.1 at epochs 1, of the backbone 0.05 times 0.2 at epochs 1"
    assert words in result["protocol"] and "all labels" in result["protocol"]
    assert "last epoch" in result["protocol"]
    assert not (config.run_dir / "splits").exists()


def test_the_first_step_is_two_sgd_steps():
    """w <- w - lr g for the head, b <- b - backbone_lr g for the backbone."""
    torch.manual_seed(0)
    backbone, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    network = Network(backbone, head, FinetuneConfig(lr=0.5, backbone_lr=0.05))
    optimizer = network.configure_optimizers()
    before = [p.detach().clone() for p in network.parameters()]
    loss = network.training_step([torch.randn(6, 3), torch.tensor([0, 1] * 3)], 0)
    loss.backward()
    grads = [p.grad.clone() for p in network.parameters()]
    optimizer.step()
    for old, grad, new, lr in zip(
        before, grads, network.parameters(), [0.05] * 2 + [0.5] * 2, strict=True
    ):
        assert torch.allclose(new, old - lr * grad, atol=1e-7)


def test_it_learns_and_the_seed_decides(run):
    config = run(
        *["evaluation.finetune.max_epochs=6", "evaluation.finetune.lr=0.1"],
        "evaluation.finetune.backbone_lr=0.05",
    )
    target = load_target(config, "random")
    state = torch.get_rng_state()
    first = finetune_eval(config, target, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert first["top1"] >= 60  # the classes are colours; 33 % by chance
    assert finetune_eval(config, target, progress=False) == first


def test_a_split_is_recorded_and_can_be_read_again(run):
    config = run("seed=5", "data.num_workers=0")
    result = finetune_eval(config, load_target(config, "random"), 25, progress=False)
    path = config.run_dir / "splits" / "custom-25-seed5.txt"
    lines = path.read_text().splitlines()
    assert lines[0] == "# 25 % of 32 images, seed 5" and len(lines) == result["train_images"] + 1
    counts = [sum(line.startswith(f"{c}/{c}_") for line in lines) for c in ("cat", "dog", "fox")]
    assert counts == [5, 3, 1]  # the share of the last would be none
    assert result["split_file"] == str(path)
    assert "25 % of the labels, stratified draw of seed 5" in result["protocol"]
    listed = replace(config, data=replace(config.data, file_list=str(path)))
    assert len(labelled_images(listed, "train")) == result["train_images"]
    again = finetune_eval(listed, load_target(config, "random"), 25, progress=False)
    assert again["top1"] == result["top1"] and again["split_sha256"] == result["split_sha256"]
    assert f"the {len(lines) - 1} images of custom-25-seed5.txt" in again["protocol"]
    with pytest.raises(UserError, match="file list holds another share .*: 28.1 % in .* 1 % were"):
        finetune_eval(listed, load_target(config, "random"), 1, progress=False)


def test_indices_are_recorded_where_images_have_no_files(tiny_run):
    config = tiny_run("mec", "evaluation.finetune.batch_size=8", "evaluation.finetune.max_epochs=1")
    result = finetune_eval(config, load_target(config, "random"), 10, progress=False)
    title, *lines = (config.run_dir / "splits/digits-10-seed0.txt").read_text().splitlines()
    assert title == "# 10 % of 160 images, seed 0" and result["train_images"] == len(lines) == 16
    labels = labelled_images(config, "train").targets[[int(line) for line in lines]]
    assert set(labels) == set(range(10))


@pytest.mark.parametrize("percent", [0.1, 1, 10, 33.3, 100])
def test_draws_are_stratified_with_an_image_of_each_class(percent):
    targets = np.random.RandomState(0).permutation(np.repeat(np.arange(5), [1, 7, 100, 300, 92]))
    chosen = labelled_indices(targets, percent, 3)
    assert (np.diff(chosen) > 0).all()
    counts, sizes = np.bincount(targets[chosen], minlength=5), np.bincount(targets)
    shares = sizes * percent / 100
    assert (counts >= 1).all() and (counts <= np.maximum(np.ceil(shares), 1)).all()
    assert (counts >= np.floor(shares)).all()
    assert (chosen == labelled_indices(targets, percent, 3)).all()
    if percent < 100:
        assert (len(chosen), *chosen) != (len(chosen), *labelled_indices(targets, percent, 4))


def test_the_images_of_a_class_alone_are_drawn_at_random():
    """A class that a small share leaves out gets a seeded image, not its first."""
    targets = np.repeat([0, 1], [1000, 50])
    drawn = {tuple(labelled_indices(targets, 0.1, seed)[1:]) for seed in range(8)}
    assert len(drawn) > 4 and all(len(d) == 1 and d[0] >= 1000 for d in drawn)


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan"), "ten"])
def test_percent_out_of_range(run, percent):
    config = run()
    with pytest.raises(UserError, match=f"percent is out of range: {percent}"):
        finetune_eval(config, load_target(config, "random"), percent, progress=False)


@pytest.mark.parametrize(
    ("overrides", "kind", "percent", "message"),
    [
        (["evaluation.finetune.batch_size=33"], "random", 100, "set: 33, of 32 images"),
        (["evaluation.finetune.batch_size=10"], "random", 25, "training set: 10, of 9 images"),
        (["evaluation.finetune.precision=16-mixed"], "random", 100, "precision is not for the CPU"),
        ([], "pixels", 100, "target has no weights to train: pixels"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    run, monkeypatch, overrides, kind, percent, message
):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it began"))
    config = run(*overrides)
    with pytest.raises(UserError, match=message):
        finetune_eval(config, load_target(config, kind), percent, progress=False)
    assert not (config.run_dir / "results.json").exists()


def test_bf16_keeps_the_head_in_float32(run, monkeypatch):
    config, dtypes = run("evaluation.finetune.precision=bf16-mixed"), []
    cross_entropy = finetune.F.cross_entropy

    def watched(logits, targets):
        dtypes.append(logits.dtype)
        return cross_entropy(logits, targets)

    monkeypatch.setattr(finetune.F, "cross_entropy", watched)
    result = finetune_eval(config, load_target(config, "random"), progress=False)
    assert set(dtypes) == {torch.float32} and "in bf16-mixed" in result["protocol"]
