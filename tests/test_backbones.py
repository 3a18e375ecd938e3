"""Backbones: pooled features, stems as the recipes state them, clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from solo_minent.backbones import STEMS, build_backbone
from solo_minent.errors import UserError

TINY = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}


@pytest.mark.parametrize(
    ("name", "kwargs", "width"),
    [
        ("resnet18", {}, 512),
        ("resnet50", {"zero_init_residual": True}, 2048),
        ("timm:resnet10t", TINY, 64),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "patch_size": 16, "depth": 1}, 192),
        ("timm:mobilenetv3_small_100", {}, 1024),
    ],
)
def test_returns_pooled_features_of_the_announced_width(name, kwargs, width):
    model = build_backbone(name, **kwargs).eval()
    assert type(model.num_features) is int
    assert model.num_features == width
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, width)


def test_zero_init_residual_reaches_the_model():
    gammas = [
        block.bn2.weight
        for block in build_backbone("resnet18", zero_init_residual=True).modules()
        if hasattr(block, "bn2")
    ]
    assert len(gammas) == 8
    assert all(not gamma.any() for gamma in gammas)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "timm:resnet10t"])
@pytest.mark.parametrize(
    ("stem", "side_after_conv", "side_after_pool"),
    [("imagenet", 16, 8), ("cifar", 32, 32), ("small", 32, 16), ("solo", 34, 34)],
)
def test_stem_shapes_on_32_pixels(name, stem, side_after_conv, side_after_pool):
    model = build_backbone(name, stem=stem)
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.conv1.bias is None
    maps = model.conv1(torch.zeros(1, 3, 32, 32))
    assert maps.shape[1:] == (model.bn1.num_features, side_after_conv, side_after_conv)
    assert model.maxpool(maps).shape[-1] == side_after_pool


def test_stem_geometry():
    assert {name: tuple(stem) for name, stem in STEMS.items()} == {
        "imagenet": (7, 2, 3, True),
        "cifar": (3, 1, 1, False),
        "small": (3, 1, 1, True),
        "solo": (3, 1, 2, False),
    }


def test_imagenet_stem_is_the_untouched_torchvision_one():
    torch.manual_seed(0)
    own = build_backbone("resnet18")
    torch.manual_seed(0)
    named = build_backbone("resnet18", stem="imagenet")
    for a, b in zip(own.parameters(), named.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "stem", "kwargs", "words"),
    [
        ("resnet81", None, {}, "resnet18"),
        ("timm:resnet10tt", None, {}, "resnet10t"),
        ("vgg16", None, {}, "unknown backbone: vgg16"),
        ("resnet18", "cifra", {}, "cifar"),
        ("resnet18", None, {"depth": 3}, "backbone.kwargs"),
        ("resnet18", None, {"weights": "DEFAULT"}, "untrained"),
        ("timm:resnet18", None, {"pretrained": True}, "untrained"),
        ("timm:resnet18", None, {"num_classes": 10}, "num_classes"),
        ("timm:vit_tiny_patch16_224", "cifar", {"depth": 1}, "no stem"),
        ("", None, {}, "backbone name"),
    ],
)
def test_bad_input_is_one_clear_error(name, stem, kwargs, words):
    with pytest.raises(UserError, match=words):
        build_backbone(name, stem=stem, **kwargs)
