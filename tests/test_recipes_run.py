"""Every recipe trains on a tree of its data set's layout, and on every format that applies.

Images, backbones and heads are small here; what a recipe says of views, stages, optimiser and
method is as it stands.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.config import load_recipe, recipes
from solo_minent.data.datasets import load_split
from solo_minent.data.h5 import write_h5
from solo_minent.data.loaders import pretrain_loader
from solo_minent.errors import UserError
from solo_minent.prepare.imagenet import STANDARD
from solo_minent.pretrain import pretrain

FOLDERS = {  # class names, side of an image
    "tiny_imagenet": ([f"n{number:08}" for number in range(200)], 64),
    "imagenet100": ([s for s in STANDARD.read_text().splitlines() if s[0] == "n"], 48),
    "imagenet": ([f"n{number:08}" for number in range(1000)], 48),
}
ARRAYS = ("digits", "cifar10", "cifar100", "stl10")
BATCH = 4
LARGE, SMALL = 32, 16
LOCAL_CROPS = {"twist_multicrop": 12, "twist_r50w2": 12, "twist_deit_s": 6, "twist_vit_b": 10}
STAGE_TWO = {"twist_multicrop": 800, "twist_r50w2": 200}  # its first epoch

HEADS = {
    "minent": ["heads=[16, 8]", "hidden_dim=32"],
    "mec": ["hidden_dim=32", "output_dim=32", "pred_hidden_dim=16"],
    "twist": ["hidden_dim=32", "output_dim=16", f"bunch_size={BATCH}"],
    "corinfomax": ["hidden_dim=32", "output_dim=16"],
}
# Those too slow for a test, with fewer blocks or channels.
BACKBONES = {
    "imagenet/twist_multicrop": ["backbone.kwargs.width_per_group=16"],
    "imagenet/twist_r50w2": ["backbone.kwargs.channels=[64, 128, 256, 512]"],
    "imagenet/twist_deit_s": ["backbone.kwargs.depth=2"],
    "imagenet/twist_vit_b": ["backbone.kwargs.depth=2"],
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """`data.root` of each data set; for h5, the key is (data set, "h5")."""
    base = tmp_path_factory.mktemp("roots")
    with pytest.MonkeyPatch.context() as patch:
        roots = {"digits": None}
        for name, kind, classes in (("cifar10", tv.CIFAR10, 10), ("cifar100", tv.CIFAR100, 100)):
            roots[name] = write_cifar(base / name, kind, classes, patch)
        roots["stl10"] = write_stl10(base / "stl10", patch)
        for name, (classes, side) in FOLDERS.items():
            roots[name] = write_folder(base / name, classes, side)
        for name, root in list(roots.items()):
            place = roots[name, "h5"] = base / f"{name}_h5"
            place.mkdir()
            splits = {"pretrain": "pretrain", "train": "train", "test": "val"}
            for split, file in splits.items():
                if split != "pretrain" or name == "stl10":
                    write_h5(load_split(name, root, split), place / f"{file}.h5", progress=False)
        yield roots


def pictures(count, side):
    """uint8 (count, side, side, 3): colour gradients, no two alike."""
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 255, (2, count, 1, 1, 3))
    y, x = np.mgrid[:side, :side][..., None] / side
    return ((corners[0] * x + corners[1] * y) / 2).astype(np.uint8)


def write_cifar(root, kind, classes, patch):
    """torchvision's layout and pickles, with MD5 sums to match."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(name, key, count):
        pixels = pictures(count, 32).transpose(0, 3, 1, 2).reshape(count, -1)
        return write(name, {"data": pixels, key: [i % classes for i in range(count)]})

    key, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
    for split in ("train_list", "test_list"):
        files = [batch(name, key, 120) for name, _ in getattr(kind, split)]
        patch.setattr(kind, split, files)
    name, md5 = write(kind.meta["filename"], {names: [f"class {i}" for i in range(classes)]})
    patch.setattr(kind, "meta", {"filename": name, "key": names, "md5": md5})
    return root


def write_stl10(root, patch):
    """20 labelled, 40 unlabelled and 20 test images in the binary files of STL-10."""
    folder = root / tv.STL10.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for name, count in (("train", 20), ("unlabeled", 40), ("test", 20)):
        content = {f"{name}_X.bin": pictures(count, 96).transpose(0, 3, 2, 1).tobytes()}
        if name != "unlabeled":
            content[f"{name}_y.bin"] = bytes(1 + index % 10 for index in range(count))
        for file, raw in content.items():
            (folder / file).write_bytes(raw)
            sums[file] = hashlib.md5(raw).hexdigest()
    for kind in ("train_list", "test_list"):
        patch.setattr(tv.STL10, kind, [[name, sums[name]] for name, _ in getattr(tv.STL10, kind)])
    return root


def write_folder(root, classes, side):
    """One JPEG a class in train and in val."""
    for split in ("train", "val"):
        for name, pixels in zip(classes, pictures(len(classes), side), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / f"{name}_1.JPEG")
    return root


Recipe = namedtuple("Recipe", "name dataset variant")
RECIPES = [Recipe(name, *name.split("/")) for name in recipes()]


def compose(recipe, roots, *overrides, form=None):
    """The recipe for two batches of small images on one CPU, in its own format or another."""
    root = roots[(recipe.dataset, "h5") if form == "h5" else recipe.dataset]
    method = recipe.variant.partition("_")[0]
    given = [
        *([] if root is None else [f"data.root={root}"]),
        *([] if form is None else [f"data.format={form}"]),
        *(f"data.image_size={LARGE}", f"data.train_images={2 * BATCH}", "data.num_workers=0"),
        *(f"optimizer.batch_size={BATCH}", "devices=1", "num_nodes=1"),
        *("accelerator=cpu", "dali.device=cpu"),
        *(f"method_kwargs.{line}" for line in HEADS[method]),
        *BACKBONES.get(recipe.name, []),
    ]
    if recipe.dataset == "digits":
        given.append(f"augmentations.0.crop_size={LARGE}")
    if recipe.variant in LOCAL_CROPS:
        given.append(f"augmentations.2.crop_size={SMALL}")
    if recipe.variant in STAGE_TWO:
        given.append(f"late_augmentations.2.crop_size={SMALL}")
    return load_recipe(recipe.name, [*given, *overrides])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_trains(recipe, roots, tmp_path):
    """Two optimiser steps; two in each stage, where there are two."""
    epochs = 2 if recipe.variant in STAGE_TWO else 1
    config = compose(
        recipe,
        roots,
        *(f"output_dir={tmp_path}", f"max_epochs={epochs}"),
        *("data.val_images=10", "evaluation.knn_every=1"),
        *(["method_kwargs.self_label_epoch=1"] if epochs == 2 else []),
        # Of its eight images two or three have a label.
        *(["evaluation.knn_k=1"] if recipe.dataset == "stl10" else []),
    )
    run_dir = pretrain(config)
    rows = pd.read_csv(run_dir / "log.csv").iloc[1:]
    losses = rows[f"train_{config.method}_loss"].tolist()
    assert len(losses) == epochs and all(map(math.isfinite, losses))
    assert rows["val_acc1"].between(0, 100).all() and rows["knn_acc1"].between(0, 100).all()
    checkpoint = torch.load(run_dir / CHECKPOINT_FILE, weights_only=True, mmap=True)
    assert checkpoint["global_step"] == 2 * epochs
    assert (run_dir / "backbone.safetensors").is_file()
    for file in run_dir.rglob("*.*t*"):  # some hundred MB
        file.unlink()


def formats(recipe):
    return ("image_folder", "h5", "device", *(() if recipe.dataset in ARRAYS else ("dali",)))


@pytest.mark.parametrize(
    ("recipe", "form"),
    [(recipe, form) for recipe in RECIPES for form in formats(recipe)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_recipe_on_every_format(recipe, form, roots):
    loader = pretrain_loader(compose(recipe, roots, form=form))
    assert len(loader) == 2
    late = STAGE_TWO.get(recipe.variant)
    for epoch in [0] if late is None else [0, late]:
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(indexes) for indexes, _, _ in batches] == [BATCH, BATCH]
        assert len(set(torch.cat([batch[0] for batch in batches]).tolist())) == 2 * BATCH
        sizes = [LARGE] * 2 + [SMALL] * LOCAL_CROPS.get(recipe.variant, 0)
        for _, views, targets in batches:
            assert [tuple(view.shape) for view in views] == [(BATCH, 3, s, s) for s in sizes]
            assert all(view.dtype == torch.float32 and view.isfinite().all() for view in views)
            assert targets.shape == (BATCH,) and targets.dtype == torch.int64


@pytest.mark.parametrize("dataset", ARRAYS)
def test_dali_refuses_sets_that_are_no_files(dataset, roots):
    (recipe,) = [recipe for recipe in RECIPES if recipe[1:] == (dataset, "mec")]
    words = rf"data\.dataset={dataset} is kept as pixels\..*Set data\.format=device"
    with pytest.raises(UserError, match=words):
        pretrain_loader(compose(recipe, roots, form="dali"))
