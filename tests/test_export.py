"""Exported backbones, in the other tools: the same features, or one line that says why not."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from torch.nn import functional as F

from solo_minent.backbones import build_backbone
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import Pixels, Target
from solo_minent.export import detectron2_key, export_backbone, loading_hint

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def exported(tiny_run, tmp_path):
    """`exported("resnet18", "timm", stem)`: path, configuration and target of an export."""

    def make(name, format, stem=None, suffix=".pth", **kwargs):
        torch.manual_seed(1)
        backbone = build_backbone(name, stem, **kwargs)
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # running statistics count as well
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        overrides = [f"backbone.name={name}", f"backbone.stem={stem or 'null'}"]
        config = tiny_run("minent", *overrides)
        config.backbone.kwargs = kwargs
        target = Target("random", backbone, "initialised with seed 1")
        path = export_backbone(config, target, format, tmp_path / f"{format}{suffix}")
        return path, config, target

    return make


def features(model):
    with torch.no_grad():
        return model.eval()(IMAGES)


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-6 * b.abs().max().item())


def follow(hint):
    """What the hint's own lines load."""
    names = {}
    exec(hint, names)
    return names["model"]


@pytest.mark.parametrize(
    ("name", "format", "stem", "suffix", "kwargs"),
    [
        ("resnet18", "torchvision", None, ".safetensors", {}),
        ("resnet50", "torchvision", "cifar", ".pth", {}),
        ("timm:resnet18", "torchvision", "small", ".pt", {}),
        ("resnet18", "timm", None, ".safetensors", {}),
        ("resnet50", "timm", "imagenet", ".pth", {}),
        ("resnet18", "timm", "solo", ".safetensors", {}),
        ("timm:resnet18", "timm", "cifar", ".pth", {"channels": [8, 16, 16, 16]}),
        ("timm:resnet10t", "timm", "cifar", ".pth", {}),  # its own stem is three convolutions
        ("timm:vit_tiny_patch16_224", "timm", None, ".safetensors", {"img_size": 64}),
    ],
)
def test_the_hint_loads_the_same_features(exported, name, format, stem, suffix, kwargs):
    path, config, target = exported(name, format, stem, suffix, **kwargs)
    model = follow(loading_hint(config, target, format, path))
    library = torchvision if format == "torchvision" else timm
    assert type(model).__module__.startswith(library.__name__)
    assert close(features(model), features(target.backbone))


def test_torchvision_takes_it_as_it_is(exported):
    path, _, target = exported("resnet18", "torchvision")
    model = torchvision.models.resnet18()
    missing, unexpected = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    model.fc = torch.nn.Identity()
    assert close(features(model), features(target.backbone))


def test_timm_takes_it_as_it_is(exported):
    path, _, target = exported("resnet18", "timm")
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(torch.load(path, weights_only=True))
    assert close(features(model), features(target.backbone))


def test_safetensors_say_what_they_are(exported):
    path, _, _ = exported("resnet18", "timm", "small", ".safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "timm resnet18, stem: small"}


def read_as_detectron2(weights, images):
    """detectron2's ResNet (STRIDE_IN_1X1: False) from its names alone: -> pooled res5."""

    def convolution(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        norm = (weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var"))
        scale = (weights[f"{name}.norm.{part}"] for part in ("weight", "bias"))
        return F.batch_norm(x, *norm, *scale)

    x = F.max_pool2d(F.relu(convolution(images, "stem.conv1", 2)), 3, 2, 1)
    for stage in range(2, 6):
        block = 0
        while f"res{stage}.{block}.conv1.weight" in weights:
            name = f"res{stage}.{block}"
            stride = 2 if stage > 2 and block == 0 else 1
            bottleneck = f"{name}.conv3.weight" in weights
            y = F.relu(convolution(x, f"{name}.conv1", 1 if bottleneck else stride))
            y = convolution(y, f"{name}.conv2", stride if bottleneck else 1)
            if bottleneck:
                y = convolution(F.relu(y), f"{name}.conv3")
            if f"{name}.shortcut.weight" in weights:
                x = convolution(x, f"{name}.shortcut", stride)
            x, block = F.relu(x + y), block + 1
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm:resnet34"])
def test_detectron2(exported, name):
    path, config, target = exported(name, "detectron2")
    content = torch.load(path, weights_only=True)
    assert content["matching_heuristics"] is True and content["__author__"] == "solo_minent"
    assert all(isinstance(value, torch.Tensor) for value in content["model"].values())
    assert len(content["model"]) == len(target.backbone.state_dict())
    found = read_as_detectron2(content["model"], IMAGES)
    assert close(found, features(target.backbone))
    hint = loading_hint(config, target, "detectron2", path)
    assert f"DEPTH: {name[-2:]}" in hint and "STRIDE_IN_1X1: False" in hint
    assert ("RES2_OUT_CHANNELS: 64" in hint) == (name != "resnet50")
    # digits' normalisation, for pixels up to 255
    mean = hint.split("PIXEL_MEAN: ")[1].splitlines()[0]
    assert np.allclose(eval(mean), 255 * 0.3058, atol=1e-3)


def test_detectron2_names():
    names = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer4.2.downsample.1.bias": "res5.2.shortcut.norm.bias",
        "layer3.10.conv2.weight": "res4.10.conv2.weight",
        "layer3.10.bn3.weight": "res4.10.conv3.norm.weight",
    }
    assert {key: detectron2_key(key) for key in names} == names


@pytest.mark.parametrize(
    ("name", "format", "stem", "kwargs", "message"),
    [
        ("resnet18", "detectron2", "cifar", {}, "no form in detectron2: resnet18 with stem cifar"),
        ("timm:resnet18", "torchvision", None, {"channels": [8, 16, 16, 16]}, "timm's resnet18"),
        ("timm:resnet26", "detectron2", None, {}, "no form in detectron2: timm's resnet26"),
        ("timm:vit_tiny_patch16_224", "torchvision", None, {}, "timm's vit_tiny_patch16_224"),
        ("timm:resnet50d", "torchvision", None, {}, "timm's resnet50d"),
        ("resnet18", "onnx", None, {}, "format is unknown: onnx.*torchvision, timm, detectron2"),
    ],
)
def test_what_a_format_does_not_have(exported, tmp_path, name, format, stem, kwargs, message):
    with pytest.raises(UserError, match=message):
        exported(name, format, stem, **kwargs)
    assert not list(tmp_path.glob(f"{format}*"))


@pytest.mark.parametrize("format", ["torchvision", "timm", "detectron2"])
def test_another_target_and_another_ending(tiny_run, tmp_path, exported, format):
    config = tiny_run("minent")
    target = Target("pixels", Pixels(32), "normalised pixels")
    with pytest.raises(UserError, match="no form in .*Pixels"):
        export_backbone(config, target, format, tmp_path / "x.pth")
    with pytest.raises(UserError, match="another ending: .*[.]pkl.*it ends in [.]pth"):
        exported("resnet18", format, suffix=".pkl")


def test_a_model_of_the_same_shapes_that_computes_otherwise_is_refused(exported):
    with pytest.raises(UserError, match="torchvision does not have this backbone: resnet18"):
        exported("timm:resnet18", "torchvision", act_layer="silu")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nothing_is_overwritten(exported, suffix):
    path, config, target = exported("resnet18", "timm", None, suffix)
    before = path.read_bytes()
    assert export_backbone(config, target, "timm", path) == path
    with torch.no_grad():
        target.backbone.conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(UserError, match=f"file is there with other content: {path}"):
        export_backbone(config, target, "timm", path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".tmp"] == []


def test_the_target_is_left_as_it_was(exported):
    _, _, target = exported("resnet18", "torchvision")
    target.backbone.train()
    target.backbone.layer1.eval()
    exported("resnet18", "timm")
    assert target.backbone.training and not target.backbone.layer1.training
