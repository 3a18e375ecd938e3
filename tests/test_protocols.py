"""Every evaluation protocol composes, runs, and carries what its authors publish."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from solo_minent.config import RECIPES, load_recipe, protocol, protocols
from solo_minent.errors import UserError
from solo_minent.evaluation import training
from solo_minent.evaluation.finetune import finetune_eval
from solo_minent.evaluation.linear import _rates, linear_eval
from solo_minent.evaluation.protocols import name_of
from solo_minent.evaluation.targets import load_target
from solo_minent.schema import FinetuneConfig, LinearConfig

IMAGENET = 1281167
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0}
CROPS = {"augment": True, "crop_scale": [0.08, 1.0], "resize": 256, "blocks": 0}
BILINEAR = CROPS | {"interpolation": "bilinear", "init": "normal"}
BICUBIC = CROPS | {"interpolation": "bicubic"}
COR = SGD | BICUBIC | {"head_norm": "none", "init": "default"}
VIT = SGD | BICUBIC | {"head_norm": "none", "init": "normal", "blocks": 4}

# (absolute rates of epochs, epochs, batch), and further values.
LINEAR = {
    "minent": (
        ({0: 1e-2, 499: 1e-6}, 500, 1000),
        {"optimizer": "adam", "weight_decay": 5e-6, "augment": False, "resize": None, "blocks": 0}
        | {"head_norm": "none", "init": "default"},
    ),
    "corinfomax": (({0: 0.2, 50: 0.101}, 100, 256), COR),
    "corinfomax_imagenet": (({0: 25, 19: 25, 20: 2.5, 80: 25e-4, 99: 25e-4}, 100, 256), COR),
    "mec": (
        ({0: 0.48, 50: 0.24}, 100, 4096),
        BILINEAR
        | {"optimizer": "larc", "momentum": 0.9, "weight_decay": 0.0}
        | {"head_norm": "batchnorm"},
    ),
    "twist": (({0: 0.2, 50: 0.1}, 100, 1024), SGD | BILINEAR | {"head_norm": "none"}),
    "twist_vit": (({0: 0.08, 50: 0.04}, 100, 1024), VIT),
    "twist_vit_b": (({0: 0.006, 50: 0.003}, 100, 1024), VIT),
}
ALL = SGD | {"crop_scale": [0.08, 1.0], "resize": 256, "interpolation": "bilinear"}
ALL |= {"init": "normal", "head_norm": "none"}
# (rates of the head, rates of the backbone, epochs), batch 256.
FINETUNE = {
    "twist_1": ({0: 0.2, 10: 0.1}, {0: 0.04, 10: 0.02}, 20),
    "twist_10": ({0: 0.2, 10: 0.1}, {0: 0.02, 10: 0.01}, 20),
    "twist_100": ({0: 0.2, 15: 0.1}, {0: 0.01, 15: 0.005}, 30),
    "corinfomax_1": ({0: 10, 5: 1, 19: 0.01}, {0: 5e-3, 5: 1e-3, 19: 4e-5}, 20),
    "corinfomax_10": ({0: 20, 4: 20, 10: 0.2}, {0: 5e-3, 4: 5e-3, 10: 2e-4}, 20),
}


def settings_of(kind, name):
    config = load_recipe("imagenet/mec", ["data.root=.", *protocol(kind, name)])
    return getattr(config.evaluation, kind)


def test_every_protocol_has_its_row():
    assert protocols("linear") == sorted(LINEAR)
    assert protocols("finetune") == sorted(FINETUNE)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_protocols_are_the_published_ones(name):
    (rates, epochs, batch), values = LINEAR[name]
    settings = settings_of("linear", name)
    assert (settings.max_epochs, settings.batch_size) == (epochs, batch)
    assert {key: getattr(settings, key) for key in values} == values
    (lr,) = _rates(settings, IMAGENET)
    rate = training.epoch_lr(settings, lr, settings.final_lr)
    assert {epoch: rate(epoch) for epoch in rates} == pytest.approx(rates)
    assert name_of("linear", settings) == name


@pytest.mark.parametrize("name", FINETUNE)
def test_finetune_protocols_are_the_published_ones(name):
    head, backbone, epochs = FINETUNE[name]
    settings = settings_of("finetune", name)
    assert (settings.max_epochs, settings.batch_size) == (epochs, 256)
    assert {key: getattr(settings, key) for key in ALL} == ALL
    of_head = training.epoch_lr(settings, settings.lr)
    of_backbone = training.epoch_lr(settings, settings.backbone_lr, gamma=settings.backbone_gamma)
    assert {epoch: of_head(epoch) for epoch in head} == pytest.approx(head)
    assert {epoch: of_backbone(epoch) for epoch in backbone} == pytest.approx(backbone)


@pytest.mark.parametrize(
    ("kind", "schema", "own", "default"),
    [
        ("linear", LinearConfig, {"name", "sweep", "sweep_part"}, "minent"),
        ("finetune", FinetuneConfig, {"name", "precision"}, "twist_100"),
    ],
)
def test_a_protocol_leaves_no_value_of_another(kind, schema, own, default):
    keys = {field.name for field in fields(schema)} - own
    for name in protocols(kind):
        path = RECIPES / "protocols" / kind / f"{name}.yaml"
        assert set(yaml.safe_load(path.read_text())) == keys, path
        assert path.read_text().startswith("# "), path  # its source
    assert settings_of(kind, default) == schema()


def test_overrides_come_behind_a_protocol_and_are_told():
    lines = [*protocol("linear", "mec"), "evaluation.linear.lr=0.1"]
    settings = load_recipe("digits/mec", lines).evaluation.linear
    assert (settings.lr, settings.batch_size, settings.optimizer) == (0.1, 4096, "larc")
    assert name_of("linear", settings) == "mec with other lr"
    settings.name = "mine"
    assert name_of("linear", settings) == "mine"


@pytest.mark.parametrize("kind", ["linear", "finetune"])
def test_unknown_protocols_are_refused(kind):
    with pytest.raises(UserError, match=f"protocol of {kind} is unknown: twisted. They are .*twi"):
        protocol(kind, "twisted")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 8 training and 2 test images."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog", "fox"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 256, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


VIT_KWARGS = "{img_size: 16, patch_size: 4, embed_dim: 24, depth: 4, num_heads: 2}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("linear", name) for name in LINEAR), *(("finetune", name) for name in FINETUNE)],
)
def test_every_protocol_takes_two_steps(tiny_run, folder, monkeypatch, kind, name):
    vit = ["backbone.name=timm:vit_tiny_patch16_224", "backbone.stem=null"]
    vit += [f"backbone.kwargs={VIT_KWARGS}"]
    config = tiny_run(
        "mec",
        *["data.dataset=custom", f"data.root={folder}", "data.train_images=null"],
        *["data.val_images=null", *protocol(kind, name)],
        *[f"evaluation.{kind}.max_epochs=1", f"evaluation.{kind}.batch_size=12"],
    )
    if "vit" in name:
        config.backbone.name, config.backbone.stem = "timm:vit_tiny_patch16_224", None
        config.backbone.kwargs = yaml.safe_load(VIT_KWARGS)
    made, make = [], training.make_optimizer

    def counted(settings, groups):
        optimizer = make(settings, groups)
        optimizer.steps, start = 0, [p.detach().clone() for g in groups for p in g["params"]]

        def count(optimizer, *_):
            optimizer.steps += 1

        optimizer.register_step_post_hook(count)
        made.append((optimizer, start))
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", counted)
    target = load_target(config, "random")
    evaluate = {"linear": linear_eval, "finetune": finetune_eval}[kind]
    result = evaluate(config, target, progress=False)
    ((optimizer, start),) = made
    assert optimizer.steps == 2
    settings = getattr(config.evaluation, kind)
    scale = 12 / 256 if getattr(settings, "scale_lr", False) else 1
    assert optimizer.param_groups[0]["lr"] == pytest.approx(settings.lr * scale)
    now = [p for group in optimizer.param_groups for p in group["params"]]
    assert any(not torch.equal(a, b.cpu()) for a, b in zip(start, now, strict=True))
    if "vit" in name:
        assert start[0].shape == (3, 4 * 24)
    assert f"{name} with other max_epochs, batch_size;" in result["protocol"]
    assert (result["train_images"], result["test_images"]) == (24, 6)
    assert 0 <= result["top1"] <= result["top5"] == 100
