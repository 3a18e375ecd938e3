"""Backbones: torchvision ResNets with the stems small images need, and any timm model.

Stems (DESIGN of the recipes): `imagenet` 7x7/2 convolution and max-pool; `cifar` 3x3/1 padding 1
without max-pool; `small` 3x3/1 padding 1 with max-pool (MinEnt's STL-10 and Tiny-ImageNet); `solo`
3x3/1 padding 2 without max-pool (solo-learn's CIFAR stem). A convolution that is replaced keeps
PyTorch's default initialisation, as in the official recipes.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from solo_minent.errors import UserError

TIMM_PREFIX = "timm:"
# What a model makes of arguments, or of images, that it was not made for.
FAILURES = (
    *(TypeError, ValueError, AssertionError, RuntimeError, LookupError),
    *(AttributeError, ArithmeticError, MemoryError),
)


class Stem(NamedTuple):
    kernel_size: int
    stride: int
    padding: int
    max_pool: bool


STEMS = {
    "imagenet": Stem(7, 2, 3, True),
    "cifar": Stem(3, 1, 1, False),
    "small": Stem(3, 1, 1, True),
    "solo": Stem(3, 1, 2, False),
}


def build_backbone(name: str, stem: str | None = None, **kwargs: Any) -> nn.Module:
    """An untrained backbone: images (B, 3, H, W) -> pooled features (B, num_features).

    name: a torchvision ResNet (`resnet18`, `resnet50`, `wide_resnet50_2`, …) or `timm:<model>`.
    stem: one of `STEMS`, or None for the model's own. On timm models it needs a ResNet-like
        `conv1` and `maxpool`; a deep stem is replaced as a whole.
    kwargs: passed to the model's constructor, e.g. `zero_init_residual=True`.

    The module has the int attribute `num_features`. Nothing is downloaded.
    Raises UserError on an unknown name or stem, and on arguments the model does not take.
    """
    if stem is not None and stem not in STEMS:
        raise UserError(f"unknown stem: {stem}. {_known(str(stem), STEMS)} Set backbone.stem.")
    if kwargs.keys() & {"pretrained", "weights", "checkpoint_path"}:
        raise UserError(
            "a backbone is built untrained: pretrained weights were asked for. Nothing is "
            "downloaded or read here. Remove them from backbone.kwargs."
        )
    if not isinstance(name, str) or not name:
        raise UserError(f"backbone name must be a word: {name!r}. Set backbone.name=resnet18.")
    if name.startswith(TIMM_PREFIX):
        model = _timm_model(name.removeprefix(TIMM_PREFIX), kwargs)
    else:
        model = _torchvision_resnet(name, kwargs)
    if stem is not None:
        _set_stem(model, name, stem)
    return model


def check_images(backbone: nn.Module, name: str, sizes: Iterable[int]) -> None:
    """Passes two black images of each size through a backbone, which it leaves as it was.

    Args:
        backbone: of `build_backbone`, on the CPU.
        name: its name, for the message.
        sizes: sides of the views, in pixels.

    Raises:
        UserError: it does not take them, or does not make (2, num_features) of them.
    """
    training = backbone.training
    backbone.eval()
    for size in sizes:
        try:
            with torch.no_grad():
                shape = tuple(backbone(torch.zeros(2, 3, size, size)).shape)
        except FAILURES as error:
            shape = " ".join(str(error).split())[:300]
        if shape != (2, backbone.num_features):
            raise UserError(
                f"{name} does not take images of {size} pixels: {shape}. It makes "
                f"{backbone.num_features} features of each RGB image. Correct backbone.kwargs, "
                "or the sizes: data.image_size, crop_size in augmentations."
            )
    backbone.train(training)


def stem_of(backbone: nn.Module) -> str | None:
    """The name in `STEMS` of what a ResNet begins with; None if it is of another kind."""
    conv, pool = getattr(backbone, "conv1", None), getattr(backbone, "maxpool", None)
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != 3 or conv.bias is not None:
        return None
    pooled = isinstance(pool, nn.MaxPool2d)
    if pooled and (pool.kernel_size, pool.stride, pool.padding) != (3, 2, 1):
        return None
    if not pooled and not isinstance(pool, nn.Identity):
        return None
    shape = (conv.kernel_size, conv.stride, conv.padding)
    for name, stem in STEMS.items():
        if (shape, pooled) == (tuple((side, side) for side in stem[:3]), stem.max_pool):
            return name
    return None


def _torchvision_resnet(name: str, kwargs: dict[str, Any]) -> nn.Module:
    from torchvision import models

    names = [
        n
        for n in models.list_models()
        if models.get_model_builder(n).__module__ == "torchvision.models.resnet"
    ]
    if name not in names:
        raise UserError(
            f"unknown backbone: {name}. {_known(name, names)} "
            f"Any timm model: backbone.name={TIMM_PREFIX}{name or 'resnet18'}."
        )
    model = _construct(name, lambda: models.get_model(name, weights=None, **kwargs), kwargs)
    model.num_features = model.fc.in_features
    model.fc = nn.Identity()
    return model


def _timm_model(name: str, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UserError(
            f"unknown timm model: {name}. {_known(name, timm.list_models())} "
            'All of them: python -c "import timm; print(timm.list_models())".'
        )
    for key in ("num_classes", "features_only"):
        if key in kwargs:
            raise UserError(
                f"backbone.kwargs.{key} is fixed: {kwargs[key]}. A backbone returns pooled "
                f"features. Remove it."
            )
    model = _construct(name, lambda: timm.create_model(name, num_classes=0, **kwargs), kwargs)
    # MobileNetV3 and its like end in a wider layer than `num_features` says.
    model.num_features = int(getattr(model, "head_hidden_size", None) or model.num_features)
    return model


def _construct(name: str, build: Any, kwargs: dict[str, Any]) -> nn.Module:
    if not kwargs:
        return build()
    try:
        with warnings.catch_warnings():  # of layers without channels: check_images refuses them
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return build()
    except FAILURES as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot be built with {kwargs}: {reason}. Allowed are the arguments of its "
            "constructor. Correct backbone.kwargs."
        ) from error


def _set_stem(model: nn.Module, name: str, stem: str) -> None:
    old, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if old is None or pool is None:
        raise UserError(
            f"{name} has no stem to replace: {stem}. Stems apply to ResNets with conv1 and "
            "maxpool. Set backbone.stem=null and shape the input with backbone.kwargs."
        )
    convolutions = [m for m in old.modules() if isinstance(m, nn.Conv2d)]
    want = STEMS[stem]
    exact = isinstance(old, nn.Conv2d) and (old.kernel_size, old.stride, old.padding) == (
        (want.kernel_size,) * 2,
        (want.stride,) * 2,
        (want.padding,) * 2,
    )
    if not exact:
        model.conv1 = nn.Conv2d(
            convolutions[0].in_channels,
            convolutions[-1].out_channels,
            kernel_size=want.kernel_size,
            stride=want.stride,
            padding=want.padding,
            bias=False,
        )
    if not want.max_pool:
        model.maxpool = nn.Identity()
    elif not isinstance(pool, nn.MaxPool2d):
        model.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def _known(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=4, cutoff=0.5)
    if close:
        return f"Did you mean {', '.join(close)}?"
    some = sorted(names)
    return f"Allowed: {', '.join(some[:12])}{', …' if len(some) > 12 else ''}."
