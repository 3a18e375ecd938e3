"""What is evaluated, on which device and images, and what is refused before it starts."""

import os
import shutil
from dataclasses import replace

import pytest
import torch

from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import BACKBONE_FILE, CHECKPOINT_FILE, save_backbone
from solo_minent.config import load_recipe, to_yaml
from solo_minent.errors import UserError
from solo_minent.evaluation import targets
from solo_minent.evaluation.targets import (
    EvalLoaders,
    eval_loaders,
    features_of,
    load_target,
    with_normalization,
)
from solo_minent.files import write_text
from solo_minent.schema import BackboneConfig


@pytest.mark.parametrize(
    ("accelerator", "cuda", "device"),
    [
        ("cpu", True, "cpu"),
        ("auto", True, "cuda"),
        ("gpu", True, "cuda"),
        ("gpu", False, "cpu"),
        ("auto", False, "cpu"),
    ],
)
def test_features_are_computed_where_the_run_says(accelerator, cuda, device, monkeypatch):
    used = []

    def extract(backbone, loader, device, precision, progress):
        used.append((device, precision))
        return torch.zeros(1, 1), torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(targets, "extract_features", extract)
    config = load_recipe("digits/mec", [f"accelerator={accelerator}"])
    target = load_target(config, "pixels")
    features_of(target, config, loaders=(None, None))
    assert used == [(device, "32")] * 2


def test_precision_is_the_evaluations_unless_one_is_given(tiny_run):
    config = tiny_run("mec", "evaluation.precision=bf16-mixed", "evaluation.cache_features=false")
    target = load_target(config, "random")
    rough = features_of(target, config, progress=False)
    exact = features_of(target, config, progress=False, precision="32")
    assert not torch.equal(rough.test, exact.test)
    torch.testing.assert_close(rough.test, exact.test, atol=0.1, rtol=0.1)
    with pytest.raises(UserError, match="evaluation.precision is unknown: fp8"):
        tiny_run("mec", "evaluation.precision=fp8")


def test_neighbours_are_at_most_the_training_images():
    config = load_recipe("digits/mec", ["evaluation.knn_k=7"])
    targets.check_knn_k(config, 7)
    with pytest.raises(UserError, match="evaluation.knn_k is out of range: 7.*at most 3. Set .*=3"):
        targets.check_knn_k(config, 3)
    with pytest.raises(UserError, match="--k is out of range: 7"):
        targets.check_knn_k(config, 6, "--k")


@pytest.fixture
def finished(tiny_run):
    """A run folder as pretraining leaves it, with random weights of a known seed."""

    def make(*overrides, seed=5):
        config = tiny_run("mec", *overrides)
        torch.manual_seed(seed)
        b = config.backbone
        student, teacher = (build_backbone(b.name, b.stem, **b.kwargs) for _ in range(2))
        save_backbone(config.run_dir / BACKBONE_FILE, student.state_dict(), config)
        write_text(config.run_dir / "config.yaml", to_yaml(config))
        state = {f"backbone.{k}": v for k, v in student.state_dict().items()}
        state |= {f"teacher_backbone.{k}": v for k, v in teacher.state_dict().items()}
        path = config.run_dir / CHECKPOINT_FILE
        path.parent.mkdir()
        torch.save({"state_dict": state, "callbacks": {"EpochLog": {}}}, path)
        return config, student, teacher

    return make


def same(target, backbone):
    own, other = target.backbone.state_dict(), backbone.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)


def test_a_run_by_itself_and_by_name(finished, tiny_run):
    config, student, teacher = finished("name=one", "data.mean=[0.1,0.2,0.3]")
    folder = config.run_dir
    trained = load_target(config)
    assert (trained.kind, trained.mean) == ("trained", None) and same(trained, student)
    assert trained.origin == f"{folder}/{BACKBONE_FILE} (solo_minent backbone): loaded 78/78"
    assert same(load_target(config, "teacher"), teacher)

    other = tiny_run("twist", "name=two", "backbone.kwargs.channels=[8,8,8,8]", "seed=3")
    by_folder = load_target(other, str(folder))
    assert same(by_folder, student) and by_folder.kind == str(folder)
    assert by_folder.mean == [0.1, 0.2, 0.3] and by_folder.std == [0.3764] * 3
    assert by_folder.checkpoint_sha256 == trained.checkpoint_sha256
    assert same(load_target(other, f"teacher:{folder}"), teacher)
    assert "teacher" in load_target(other, f"teacher:{folder}").origin


@pytest.mark.parametrize("file", [BACKBONE_FILE, CHECKPOINT_FILE])
def test_a_weight_file_is_of_the_runs_backbone(file, finished, tiny_run):
    config, student, teacher = finished("name=one")
    path, twin = config.run_dir / file, tiny_run("minent", "name=two")
    target = load_target(twin, str(path))
    assert same(target, student) and target.kind == str(path)
    if file == CHECKPOINT_FILE:
        assert same(load_target(twin, f"teacher:{path}"), teacher)
    # small and cifar differ in the pooling alone.
    pooled = tiny_run("minent", "backbone.stem=cifar")
    with pytest.raises(UserError, match="weights are of another backbone.*Name the run folder"):
        load_target(pooled, str(path))


def test_a_weight_file_brings_its_normalisation(finished, tiny_run, tmp_path):
    config, student, _ = finished("name=one", "data.mean=[0.1,0.2,0.3]")
    twin = tiny_run("minent", "name=two")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(config.run_dir / BACKBONE_FILE, alone)
    for path in (config.run_dir / BACKBONE_FILE, config.run_dir / CHECKPOINT_FILE, alone):
        target = load_target(twin, str(path))
        assert (target.mean, target.std) == ([0.1, 0.2, 0.3], [0.3764] * 3)
    torch.save(student.state_dict(), tmp_path / "foreign.pth")
    assert load_target(twin, str(tmp_path / "foreign.pth")).mean is None


def test_a_name_that_begins_with_teacher_is_no_teacher(finished, tiny_run, tmp_path, monkeypatch):
    config, student, teacher = finished("name=one")
    monkeypatch.chdir(tmp_path)
    shutil.copy(config.run_dir / CHECKPOINT_FILE, "teacher_forcing.ckpt")
    twin = tiny_run("minent", "name=two")
    assert same(load_target(twin, "teacher_forcing.ckpt"), student)
    assert same(load_target(twin, "teacher:teacher_forcing.ckpt"), teacher)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noise", "evaluation target is unknown: noise. It is one of trained"),
        ("zoo:x", "evaluation target is unknown: zoo:x"),
        ("teacher:", "target is unknown"),
        ("no/file.pth", "backbone weights are missing: no/file.pth"),
        ("trained", "backbone weights are missing: .*pretrain again"),
        ("teacher", "backbone weights are missing: .*last.ckpt.*pretrain again"),
        (".", "run configuration is missing"),
        ("random:resnet19", "unknown backbone: resnet19"),
        ("torchvision:vgg11", "unknown backbone: vgg11"),
        ("torchvision:resnet18:V9", "weights of resnet18 is unknown: V9.*IMAGENET1K_V1"),
        ("timm:resnet19", "unknown timm model: resnet19"),
        ("random:timm:vit_tiny_patch16_224", "images do not suit .*: 16 pixels, .*takes 224"),
    ],
)
def test_what_is_no_target(spec, message, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_target(tiny_run("mec"), spec)
    assert "\n" not in str(caught.value)


def test_untrained_networks_by_name(tiny_run):
    config = tiny_run("mec")
    assert config.backbone.stem == "small" and config.data.image_size == 16
    one = load_target(config, "random:resnet18")
    assert one.kind == "random:resnet18" and one.backbone.conv1.kernel_size == (3, 3)
    assert same(load_target(config, "random:resnet18"), one.backbone)
    assert not same(load_target(replace(config, seed=1), "random:resnet18"), one.backbone)
    assert load_target(config, "random").origin == "initialised with seed 0"
    before = torch.get_rng_state()
    load_target(config, "random:resnet18")
    assert torch.equal(torch.get_rng_state(), before)


def test_identity_is_that_of_the_network_as_it_is(tiny_run):
    config = tiny_run("mec")
    target = load_target(config, "random")
    first = target.digest
    assert first == load_target(config, "random").digest and len(first) == 64
    assert load_target(replace(config, seed=1), "random").digest != first
    assert load_target(config, "pixels").digest is None
    # The same weights in another architecture, and other weights in the same.
    pooled = replace(config, backbone=replace(config.backbone, stem="cifar"))
    other = load_target(pooled, "random")
    other.backbone.load_state_dict(target.backbone.state_dict())
    assert other.digest != first
    with torch.no_grad():
        next(target.backbone.parameters()).add_(1)
    assert target.digest != first


def test_images_are_normalised_as_the_target_expects(tiny_run):
    config = tiny_run("mec")
    target = load_target(config, "random")
    plain = features_of(target, config, progress=False)
    target.mean, target.std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    moved = with_normalization(config, target)
    assert (moved.data.mean, moved.data.std) == (target.mean, target.std)
    expected = features_of(load_target(config, "random"), moved, progress=False)
    for loaders in (None, eval_loaders(config), eval_loaders(config, target)):
        found = features_of(target, config, progress=False, loaders=loaders)
        assert torch.equal(found.test, expected.test)
        assert not torch.equal(found.test, plain.test)
    own = tuple(eval_loaders(config))  # the caller's, as they are
    assert torch.equal(features_of(target, config, False, own).test, plain.test)


def test_kept_features_are_read_and_nothing_is_computed(tiny_run, monkeypatch):
    config = tiny_run("mec")
    target, loaders = load_target(config, "random"), eval_loaders(config)
    assert isinstance(loaders, EvalLoaders)
    first = features_of(target, config, progress=False, loaders=loaders)
    assert len(os.listdir(config.run_dir / "features")) == 2
    with monkeypatch.context() as patch:
        patch.setattr(targets, "extract_features", None)
        for again in (loaders, None):
            for one, other in zip(first, features_of(target, config, False, again), strict=True):
                assert torch.equal(one, other) and one.dtype == other.dtype
        with pytest.raises(TypeError):
            features_of(load_target(replace(config, seed=1), "random"), config, False)
        for change in ("data.train_images=100", "data.mean=[0.1,0.1,0.1]"):
            with pytest.raises(TypeError):
                features_of(target, tiny_run("mec", change), False)
    without = replace(config, evaluation=replace(config.evaluation, cache_features=False))
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(targets, "extract_features", None)
        features_of(target, without, False)
    features_of(load_target(config, "pixels"), config, False)
    assert len(os.listdir(config.run_dir / "features")) == 2


def test_blocks_of_a_vision_transformer(tiny_run):
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 3}
    vit = BackboneConfig("timm:vit_tiny_patch16_224", None, kwargs)
    config = replace(tiny_run("mec"), backbone=vit)
    target = load_target(config, "random")
    plain = features_of(target, config, False)
    two = features_of(target, config, False, blocks=2)
    assert two.test.shape == (80, 24) and len(os.listdir(config.run_dir / "features")) == 4
    assert torch.equal(two.test[:, 12:], plain.test)
    assert not torch.equal(two.test[:, :12], plain.test)
    with pytest.raises(UserError, match="fewer blocks: 3"):
        features_of(target, config, False, blocks=4)
    resnet = tiny_run("mec")
    with pytest.raises(UserError, match="backbone has no blocks: ResNet"):
        features_of(load_target(resnet, "random"), resnet, False, blocks=1)
