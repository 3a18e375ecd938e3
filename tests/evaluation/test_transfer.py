"""Transfer end to end: tiny sets, tiny networks, every way in and every way out."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from solo_minent.data import transfer_sets
from solo_minent.data.transfer_sets import VOC_CLASSES
from solo_minent.errors import UserError
from solo_minent.evaluation import logistic, multilabel, transfer
from solo_minent.evaluation.features import extract_features
from solo_minent.evaluation.targets import load_target
from solo_minent.evaluation.transfer import on_dataset, transfer_eval

COLORS = {"banded": (220, 60, 40), "dotted": (40, 80, 210), "grid": (60, 200, 70)}


def picture(path: Path, color: tuple[int, ...], seed: int) -> None:
    noise = np.random.default_rng(seed).integers(-30, 30, (20, 24, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def dtd(tmp_path, monkeypatch):
    """DTD with 3 classes of 6, 4 and 5 images, told apart by their colour."""
    root = tmp_path / "sets"
    sizes = {"train": 6, "val": 4, "test": 5}
    seed = 0
    for split, count in sizes.items():
        lines = []
        for name, color in COLORS.items():
            for _ in range(count):
                seed += 1
                lines.append(f"{name}/{name}_{seed}.jpg")
                picture(root / "dtd/dtd/images" / lines[-1], color, seed)
        path = root / f"dtd/dtd/labels/{split}1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    known = transfer_sets.KNOWN["dtd"]
    sizes = {split: 3 * count for split, count in sizes.items()}
    monkeypatch.setitem(transfer_sets.KNOWN, "dtd", known._replace(sizes=sizes))
    return root


@pytest.fixture
def birds(tmp_path):
    """A folder set of 3 classes, unbalanced, with val for its test."""
    root = tmp_path / "birds"
    for row, (name, color) in enumerate(COLORS.items()):
        for split, count in (("train", 6 + 4 * row), ("val", 3 + row)):
            for i in range(count):
                picture(root / split / name / f"{i}.png", color, 100 * row + i)
    return root


@pytest.fixture
def config(tiny_run):
    return tiny_run("minent", "data.image_size=16", "augmentations.0.crop_size=16")


@pytest.fixture
def target(config):
    return load_target(config, "random")


@pytest.fixture
def few_strengths(monkeypatch):
    monkeypatch.setattr(logistic, "L2_VALUES", np.logspace(-2, 2, 5))


def stored(config) -> list[dict]:
    return json.loads((config.run_dir / "results.json").read_text())


def test_linear_on_a_set_with_validation_images(config, target, dtd, few_strengths):
    result = transfer_eval(config, target, "dtd", dtd, progress=False)
    assert stored(config) == [result]
    assert result["evaluation"] == "transfer" and result["dataset"] == "dtd"
    assert result["mode"] == "linear" and result["metric"] == "top1"
    sizes = {key: result[f"{key}_images"] for key in ("train", "val", "test")}
    assert sizes == {"train": 18, "val": 12, "test": 15}
    assert result["top1"] == result["mean_per_class"] > 90, "colours are easy, classes are equal"
    assert result["l2"] in logistic.L2_VALUES and result["unconverged"] == 0
    for words in ("the authors' split 1", "validation images", "short side to 18", "from 0.01 to"):
        assert words in result["protocol"]
    assert result["target"] == "random" and result["root"] == str(dtd)


def test_linear_is_scikit_learns_on_the_same_features(config, target, dtd, monkeypatch):
    monkeypatch.setattr(logistic, "L2_VALUES", np.array([0.5]))
    models = []
    fit = logistic.fit_logistic
    monkeypatch.setattr(logistic, "fit_logistic", lambda *a: models.append(fit(*a)) or models[-1])
    transfer_eval(config, target, "dtd", dtd, progress=False)
    from torchvision import transforms as tv

    from solo_minent.data.transforms import NORMALIZATION

    mean, std = NORMALIZATION["digits"]  # those of the run
    view = tv.Compose(
        [
            tv.Resize(18, interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(16),
            tv.ToTensor(),
            tv.Normalize(mean, std),
        ]
    )
    found = transfer_sets.transfer_set("dtd", dtd)
    views = [view(image) for part in (found.train, found.val) for image, _ in part_of(part)]
    labels = np.concatenate([found.train.targets, found.val.targets])
    batches = [(torch.stack(views), torch.from_numpy(labels))]
    features, _ = extract_features(target.backbone, batches, progress=False)
    own = LogisticRegression(C=2.0, max_iter=1000, tol=1e-5).fit(features.double().numpy(), labels)
    np.testing.assert_allclose(models[-1][0].coef_, own.coef_, atol=1e-4)


def part_of(images):
    return [images[row] for row in range(len(images))]


def test_linear_on_a_folder_holds_training_images_out(
    config, target, birds, monkeypatch, few_strengths
):
    seen = []
    choose = logistic.choose_l2
    monkeypatch.setattr(logistic, "choose_l2", lambda *a: seen.append(a) or choose(*a))
    result = transfer_eval(config, target, "custom", birds, progress=False)
    train, labels, held, held_labels, metric, _ = seen[0]
    assert np.bincount(held_labels).tolist() == [1, 2, 3], "a fifth of 6, 10 and 14"
    assert len(train) + len(held) == result["train_images"] == 30
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in held}
    assert metric == "top1" and result["test_images"] == 12 and "val_images" not in result
    assert result["dataset"] == "custom:birds"
    assert "20% of each training class (seed 0)" in result["protocol"]
    assert "folders train and val" in result["protocol"]


def test_two_folders_are_two_results(config, target, birds, few_strengths):
    transfer_eval(config, target, "custom", birds, progress=False)
    other = birds.rename(birds.with_name("fish"))
    transfer_eval(config, target, "custom", other, progress=False)
    transfer_eval(config, target, "custom", other, progress=False)
    assert [row["dataset"] for row in stored(config)] == ["custom:birds", "custom:fish"]


def test_linear_on_the_runs_own_kind_of_set(config, monkeypatch):
    monkeypatch.setattr(logistic, "L2_VALUES", np.array([300.0]))
    pixels = load_target(config, "pixels")
    result = transfer_eval(config, pixels, "digits", None, progress=False)
    assert result["train_images"] > 1000, "subsets of the run do not count"
    assert result["top1"] > 90 and "whole images" in result["protocol"]


def test_mean_per_class_is_what_some_sets_report(
    config, target, tmp_path, monkeypatch, few_strengths
):
    folder = tmp_path / "sets/caltech101/101_ObjectCategories"
    buffers = {}
    for name, shade, count in (("BACKGROUND_Google", 10, 33), ("ant", 120, 31), ("bass", 250, 36)):
        buffers[name] = io.BytesIO()
        Image.new("RGB", (16, 16), (shade,) * 3).save(buffers[name], "JPEG")
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"image_{i:04d}.jpg").write_bytes(buffers[name].getvalue())
    known = transfer_sets.KNOWN["caltech101"]
    monkeypatch.setitem(transfer_sets.KNOWN, "caltech101", known._replace(sizes={"all": 100}))
    predicted = []

    def predict(model, features):
        predicted.append(np.zeros(len(features), dtype=int))
        return predicted[-1]

    monkeypatch.setattr(LogisticRegression, "predict", predict)
    result = transfer_eval(config, target, "caltech101", tmp_path / "sets", progress=False)
    # Always class 0: 3 of 3, 0 of 1 and 0 of 6.
    assert result["mean_per_class"] == pytest.approx(100 / 3)
    assert result["top1"] == pytest.approx(30)
    assert result["metric"] == "mean_per_class"
    text = (config.run_dir / "splits/caltech101-seed0.txt").read_text()
    assert len(text.splitlines()) == 90 and "ant/image_" in text and str(tmp_path) not in text
    assert result["split_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """VOC 2007 with 12, 12 and 10 images whose shade says which half of the classes they have."""
    base = tmp_path / "sets/VOCdevkit/VOC2007"
    number, sizes = 0, {"train": 12, "val": 12, "test": 10}
    for split, count in sizes.items():
        rows = []
        for _ in range(count):
            number += 1
            rows.append((f"{number:06d}", number % 2))
            color = COLORS["banded"] if number % 2 else COLORS["dotted"]
            picture(base / f"JPEGImages/{rows[-1][0]}.jpg", color, number)
        lists = base / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name, _ in rows))
        for column, label in enumerate(VOC_CLASSES):
            values = [1 if odd == column % 2 else -1 for _, odd in rows]
            values[0] = 0
            lines = [f"{n} {v}\n" for (n, _), v in zip(rows, values, strict=True)]
            (lists / f"{label}_{split}.txt").write_text("".join(lines))
    known = transfer_sets.KNOWN["voc2007"]
    monkeypatch.setitem(transfer_sets.KNOWN, "voc2007", known._replace(sizes=sizes))
    monkeypatch.setattr(multilabel, "COSTS", (0.1, 0.5))
    return tmp_path / "sets"


def test_voc(config, target, voc):
    result = transfer_eval(config, target, "voc2007", voc, progress=False)
    assert result["metric"] == "map11" and result["map11"] > 95
    each = result["average_precision"]
    assert list(each) == VOC_CLASSES
    assert result["map11"] == pytest.approx(np.mean(list(each.values())))
    assert set(result["costs"].values()) <= {0.1, 0.5}
    assert "top1" not in result and "3-fold cross-validation on train and val" in result["protocol"]
    assert stored(config) == [result]


def with_linear(config, **changes):
    linear = replace(config.evaluation.linear, **changes)
    return replace(config, evaluation=replace(config.evaluation, linear=linear))


def test_a_linear_preset(config, target, birds):
    other = with_linear(config, name="mine")
    result = transfer_eval(other, target, "custom", birds, protocol="minent", progress=False)
    assert result["evaluation"] == "transfer" and result["dataset"] == "custom:birds"
    assert result["protocol"].startswith("linear, minent")
    assert "with other" not in result["protocol"] and "500" in result["protocol"]
    assert result["metric"] == "top1" and "l2" not in result


def test_a_preset_that_the_user_has_changed(config, target, birds):
    changed = with_linear(config, name="minent", max_epochs=3)
    result = transfer_eval(changed, target, "custom", birds, protocol="minent", progress=False)
    assert result["protocol"].startswith("linear, minent with other max_epochs")


def test_a_preset_trains_on_validation_images_as_well(config, target, dtd, monkeypatch):
    result = transfer_eval(config, target, "dtd", dtd, protocol="minent", progress=False)
    assert result["train_images"] == 30 and result["test_images"] == 15
    assert "validation images are among the training images" in result["protocol"]


def test_finetuning(config, target, dtd):
    finetune = replace(config.evaluation.finetune, max_epochs=2, batch_size=10)
    config = replace(config, evaluation=replace(config.evaluation, finetune=finetune))
    before = {name: value.clone() for name, value in target.backbone.state_dict().items()}
    result = transfer_eval(config, target, "dtd", dtd, "finetune", progress=False)
    assert result["mode"] == "finetune" and result["train_images"] == 30
    assert 0 <= result["top1"] <= 100 and "fine-tuning" in result["protocol"]
    for name, value in target.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fits_that_stop_early_are_said(config, target, birds, few_strengths, monkeypatch, capsys):
    monkeypatch.setattr(logistic, "MAX_ITER", 1)
    result = transfer_eval(config, target, "custom", birds, progress=False)
    assert result["unconverged"] == 6  # five strengths and the last fit
    assert result["final_converged"] is False
    assert "warning: 6 fits on custom stopped before they converged" in capsys.readouterr().err


def test_the_runs_normalisation_and_folder(config, tiny_run, birds):
    moved = on_dataset(config, "custom", birds)
    assert moved.data.mean == [0.3058] * 3, "that of digits, which the run was trained on"
    assert moved.data.train_images is None and moved.data.image_size == 16
    assert moved.run_dir == config.run_dir
    own = tiny_run("minent", "data.mean=[0.1,0.2,0.3]", "data.std=[1,2,3]")
    assert on_dataset(own, "custom", birds).data.std == [1.0, 2.0, 3.0]


def test_corrupt_images_are_left_out_where_the_run_says_so(
    config, tiny_run, target, birds, few_strengths
):
    (birds / "train/grid/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot read an image: .*grid/0.png"):
        transfer_eval(config, target, "custom", birds, progress=False)
    skips = tiny_run("minent", "data.on_corrupt=skip")
    result = transfer_eval(skips, target, "custom", birds, progress=False)
    assert result["top1"] > 50 and result["train_images"] == 29


def test_a_corrupt_image_shifts_no_label(config, tiny_run, target, dtd, few_strengths):
    whole = transfer_eval(config, target, "dtd", dtd, progress=False)
    first = (dtd / "dtd/dtd/labels/train1.txt").read_text().split()[0]
    (dtd / "dtd/dtd/images" / first).write_bytes(b"no image")
    skips = tiny_run("minent", "data.on_corrupt=skip")
    result = transfer_eval(skips, target, "dtd", dtd, progress=False)
    sizes = {key: result[f"{key}_images"] for key in ("train", "val", "test")}
    assert sizes == {"train": 17, "val": 12, "test": 15}
    assert result["top1"] > 90 <= whole["top1"]


def test_features_are_kept_and_read_back(config, target, dtd, few_strengths, monkeypatch):
    first = transfer_eval(config, target, "dtd", dtd, progress=False)
    monkeypatch.setattr(target.backbone, "forward", None)  # nothing is computed again
    assert transfer_eval(config, target, "dtd", dtd, progress=False) == first


def test_a_network_with_a_normalisation_of_its_own(config, target, dtd, few_strengths):
    seen = []
    target.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain = transfer_eval(config, target, "dtd", dtd, progress=False)
    target.mean, target.std = [0.5] * 3, [0.5] * 3
    own = transfer_eval(config, target, "dtd", dtd, progress=False)
    assert "normalised as the run" in plain["protocol"]
    assert "normalised as the target" in own["protocol"]
    images = [seen[0] * 0.3764 + 0.3058, seen[len(seen) // 2] * 0.5 + 0.5]
    torch.testing.assert_close(*images, atol=1e-6, rtol=0)


def test_what_cannot_be_evaluated(config, target, birds, dtd, voc):
    cases = [
        (("flowers", birds), "data set is unknown: flowers. They are digits, .*Name flowers102"),
        (("dtd", birds, "knn"), "mode is unknown: knn. It is one of linear, finetune"),
        (("dtd", birds), "dtd not found: .*dtd/dtd/images"),
        (("dtd", None), "dtd needs a folder"),
        (("custom", None), "custom needs a folder: none is set. It holds train/<class>"),
        (("cifar10", birds / "no"), "cifar10 needs a folder: .*/no is none. .*prepare cifar10 "),
        (("custom", birds / "train"), "no train folder in"),
        (("dtd", dtd, "linear", "mack"), "protocol of linear is unknown: mack"),
        (("dtd", dtd, "finetune", "mec"), "protocol of finetune is unknown: mec"),
        (("voc2007", voc, "finetune"), "voc2007 has several labels an image: mode finetune"),
        (("voc2007", voc, "linear", "mec"), "voc2007 has several labels an image: mode linear"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            transfer_eval(config, target, *arguments, progress=False)
    assert not (config.run_dir / "results.json").exists()


def test_images_without_labels(config, target, tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "loose" / split / "0.png", (9, 9, 9), 0)
    with pytest.raises(UserError, match="data set has no labels"):
        transfer_eval(config, target, "custom", tmp_path / "loose", progress=False)


def test_one_image_a_class_leaves_none_to_choose_on(config, target, tmp_path):
    for split in ("train", "val"):
        for row, (name, color) in enumerate(COLORS.items()):
            picture(tmp_path / "few" / split / name / "0.png", color, row)
    with pytest.raises(UserError, match="too few training images: custom has one of each class"):
        transfer_eval(config, target, "custom", tmp_path / "few", progress=False)


def test_weights_that_have_diverged(config, target, birds):
    with torch.no_grad():
        next(target.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="features are not finite"):
        transfer_eval(config, target, "custom", birds, progress=False)


def test_every_metric_has_words():
    metrics = {known.metric for known in transfer_sets.KNOWN.values()}
    assert metrics == set(transfer.METRIC_WORDS)
