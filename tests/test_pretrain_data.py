"""Runs on other data than a labelled set: corrupt images, no labels, few labels, every format."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from solo_minent.data.datasets import load_split
from solo_minent.data.images import ArrayImages
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain


@pytest.fixture
def folder_run(tiny_run, tmp_path):
    """`folder_run("minent", …)`: a run on a folder of the digits' images, 8 a class, as PNG."""

    def make(method, *overrides, labelled=True, corrupt=0):
        images = load_split("digits", None, "train", 80)
        root = tmp_path / "digits"
        for split in ("train", "val"):
            for index in range(len(images)):
                image, target = images[index]
                folder = root / split / (str(target) if labelled else "")
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{index}.png")
        for path in sorted(root.glob("train/*/*.png"))[:corrupt]:
            path.write_bytes(path.read_bytes()[:40])
        crop = "{rrc: {crop_min_scale: 0.5}, crop_size: 16, num_crops: 2}"
        return tiny_run(
            method,
            "data.dataset=custom",
            f"data.root={root}",
            "data.train_images=null",
            "data.val_images=null",
            "optimizer.batch_size=20",
            f"augmentations=[{crop}]",
            *overrides,
        )

    return make


def log(run_dir):
    return pd.read_csv(run_dir / "log.csv")


@pytest.mark.parametrize("method", ["minent", "mec", "twist", "corinfomax"])
@pytest.mark.parametrize("form", ["dali", "device"])
def test_every_method_trains_on_every_format(folder_run, method, form):
    bunch = ["method_kwargs.bunch_size=20"] if method == "twist" else []
    run_dir = pretrain(folder_run(method, f"data.format={form}", *bunch))
    loss = log(run_dir)[f"train_{method}_loss"].iloc[1:]
    assert len(loss) == 2 and loss.notna().all()


@pytest.mark.parametrize("form", ["image_folder", "dali", "device"])
def test_a_corrupt_image_is_named_or_replaced(folder_run, form, capsys):
    with pytest.raises(UserError, match=r"cannot read an image: .*train/0/\d+\.png"):
        pretrain(folder_run("minent", f"data.format={form}", corrupt=1))
    overrides = (f"data.format={form}", "data.on_corrupt=skip", "name=skip")
    run_dir = pretrain(folder_run("minent", *overrides, corrupt=2))
    assert log(run_dir)["corrupt_images"].iloc[1:].tolist() == [2, 2]
    named = (run_dir / "corrupt.txt").read_text().split()
    assert len(named) == 2 and all("/train/0/" in name for name in named)
    assert "corrupt images replaced: 2, listed in" in capsys.readouterr().err


def test_a_folder_without_labels_trains_and_is_not_evaluated(folder_run, capsys):
    run_dir = pretrain(folder_run("minent", labelled=False))
    assert "80 images (80 without labels)" in capsys.readouterr().out
    rows = log(run_dir)
    assert rows["train_minent_loss"].notna().all() and (rows["train_class_loss"] == 0).all()
    assert not {"knn_acc1", "val_acc1"} & set(rows.columns)
    assert (run_dir / "backbone.safetensors").is_file()


def test_images_without_labels_leave_the_classifier_alone(tiny_run, monkeypatch):
    """Two batches in five have no label at all: solo-learn's loss would not be a number."""
    images = load_split("digits", None, "train", 160)
    targets = np.where(np.arange(160) < 8, images.targets, -1)
    partly = ArrayImages(images.images, targets, images.classes)
    monkeypatch.setattr("solo_minent.pretrain.pretrain_images", lambda config: partly)
    rows = log(pretrain(tiny_run("minent"))).iloc[1:]
    assert np.isfinite(rows["train_class_loss"]).all() and (rows["train_class_loss"] > 0).all()
    assert rows["train_acc1"].between(0, 100).all()


def test_loss_and_accuracy_are_over_the_labelled_images(tiny_run):
    from solo_minent import host
    from solo_minent.backbones import build_backbone
    from solo_minent.methods import available

    config = tiny_run("minent")
    host.register(available()["minent"])
    b = config.backbone
    backbone = build_backbone(b.name, b.stem, **b.kwargs)
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=10).train()
    images = torch.randn(6, 3, 16, 16)
    labels = torch.tensor([3, -1, 1, -1, -1, 2])
    module.partly_labelled = True
    out = module._base_shared_step(images, labels)
    logits, known = out["logits"][labels >= 0], labels[labels >= 0]
    torch.testing.assert_close(out["loss"], torch.nn.functional.cross_entropy(logits, known))
    hits = (logits.argmax(1) == known).double().mean().item()
    assert float(out["acc1"]) == pytest.approx(100 * hits)
    none = module._base_shared_step(images, torch.full((6,), -1))
    none["loss"].backward()
    assert none["loss"] == 0 and all(
        torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None
    )


def test_weight_decay_follows_half_a_cosine(tiny_run, monkeypatch):
    from solo_minent.training.callbacks import WeightDecay

    seen = []
    original = WeightDecay.on_train_batch_start

    def spy(self, trainer, *args):
        original(self, trainer, *args)
        seen.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(WeightDecay, "on_train_batch_start", spy)
    pretrain(
        tiny_run(
            "minent",
            *("optimizer.name=adamw", "optimizer.exclude_bias_n_norm=true"),
            *("optimizer.weight_decay=0.06", "optimizer.weight_decay_end=0.12"),
        )
    )
    assert len(seen) == 10  # steps
    wanted = [0.12 + 0.5 * (0.06 - 0.12) * (1 + math.cos(math.pi * t / 10)) for t in range(10)]
    decaying = [max(groups) for groups in seen]
    assert decaying == pytest.approx(wanted)
    assert all(set(groups) == {0, max(groups)} for groups in seen)  # norms, biases, classifier


@pytest.mark.parametrize(
    ("overrides", "environment", "words"),
    [
        (["devices=8", "accelerator=gpu"], {}, "devices are not there: 8.*devices=2.*size=128"),
        (["devices=8"], {}, "devices are not there: 8. PyTorch sees 2 GPUs"),
        (["devices=3", "optimizer.batch_size=7"], {}, "batch_size=11 for 22, not 21, as global"),
        (["num_nodes=2"], {}, "other nodes are not there: num_nodes=2.*num_nodes=1.*size=64"),
        ([], {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, "processes do not fit: 2 were start"),
        (["devices=2"], {"SLURM_NTASKS": "4"}, "processes do not fit: 4.*make 2"),
    ],
)
def test_processes_that_are_not_there(tiny_run, monkeypatch, overrides, environment, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = tiny_run("minent", "accelerator=auto", *overrides)
    with pytest.raises(UserError, match=words):
        pretrain(config)
    assert not config.run_dir.exists()


def test_solo_learns_own_dali_pipeline(folder_run):
    flip = (
        "augmentations=[{rrc: {crop_min_scale: 0.5}, horizontal_flip: {prob: 0.5}, num_crops: 2}]"
    )
    overrides = ("data.format=dali", "dali.pipeline=solo", flip)
    rows = log(pretrain(folder_run("minent", *overrides)))
    assert rows["train_minent_loss"].iloc[1:].notna().all() and "val_acc1" in rows
    affine = "augmentations=[{affine: {degrees: 5}, num_crops: 2}]"
    with pytest.raises(UserError, match="augmentation is not in solo-learn: affine"):
        pretrain(folder_run("minent", *overrides[:2], affine, "name=affine"))


def test_a_rank_that_alone_knows_what_is_wrong_says_it(folder_run):
    """The cut image is among rank 1's; rank 0 sees its peer leave, no more."""
    from solo_minent.config import to_yaml
    from solo_minent.data.loaders import pretrain_loader

    config = folder_run("minent", "devices=2", "optimizer.batch_size=10", "evaluation.knn_every=0")
    order = list(pretrain_loader(config).sampler)
    images = pretrain_loader(config).readable.images
    path = Path(images.name_of(order[1]))
    path.write_bytes(path.read_bytes()[:40])
    recipe = config.run_dir.parent / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(to_yaml(config))
    command = [sys.executable, "-m", "solo_minent", "pretrain", "--recipe", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert f"error: cannot read an image: {path}" in done.stderr
