"""The random numbers of a view, without the image.

`draw` takes from PyTorch's generator exactly what `solo_minent.data.transforms.view_transform`
takes, in the same order: with the same seed, whoever carries the numbers out makes the view that
PIL makes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from solo_minent.data import augmentations as ops
from solo_minent.data.augmentations import Operation, View

if TYPE_CHECKING:
    from torchvision.transforms import ColorJitter


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Jitter:
    """order: 0 brightness, 1 contrast, 2 saturation, 3 hue; factors are torchvision's.

    A factor that the augmentation does not have is the one that changes nothing.
    """

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float


# What an operation drew: a box (crop), a Jitter, a radius in pixels (blur), angle, shift, scale and
# shear (affine), whether it acts (all others). None: it does not act, or draws nothing.
Draw = Box | Jitter | tuple | float | bool | None


def draw(view: View, height: int, width: int) -> list[Draw]:
    """What each of the view's operations draws for an image of this size, from PyTorch's generator.

    Args:
        view: its operations are drawn in their order.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    draws = []
    for operation in view.operations:
        draws.append(_draw(operation, height, width))
        if isinstance(operation, (ops.Resize, ops.RandomResizedCrop)):
            height = width = operation.size
    return draws


def _draw(operation: Operation, height: int, width: int) -> Draw:
    from torchvision import transforms as tv

    match operation:
        case ops.Resize():
            return None
        case ops.RandomResizedCrop(_, scale, _, ratio):
            image = _blank(height, width)
            return Box(*tv.RandomResizedCrop.get_params(image, list(scale), list(ratio)))
        case ops.HorizontalFlip(prob) | ops.Grayscale(prob):
            return torch.rand(1).item() < prob
        case ops.Solarization(prob) | ops.Equalization(prob):
            return _applies(prob)
        case ops.GaussianBlur(prob, (low, high)):
            return low + (high - low) * torch.rand(()).item() if _applies(prob) else None
        case ops.ColorJitter(prob):
            if not _applies(prob):
                return None
            jitter = _color_jitter(operation)
            order, *factors = tv.ColorJitter.get_params(
                jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
            )
            neutral = (1.0, 1.0, 1.0, 0.0)
            filled = [n if f is None else f for f, n in zip(factors, neutral, strict=True)]
            return Jitter(tuple(order.tolist()), *filled)
        case ops.Affine():
            affine = tv.RandomAffine(
                operation.degrees, operation.translate, operation.scale, operation.shear
            )
            return tv.RandomAffine.get_params(
                affine.degrees, affine.translate, affine.scale, affine.shear, [width, height]
            )
    raise TypeError(f"no such operation: {operation}")


@functools.cache
def _color_jitter(jitter: ops.ColorJitter) -> ColorJitter:
    from torchvision import transforms as tv

    return tv.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)


@functools.lru_cache(maxsize=4096)
def _blank(height: int, width: int) -> torch.Tensor:
    """Something that has the size of an image."""
    return torch.empty((1, height, width), device="meta")


def _applies(prob: float) -> bool:
    """torchvision's RandomApply, which compares in float32 and the other way round."""
    return not np.float32(prob) < torch.rand(1).item()
