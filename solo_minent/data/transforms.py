"""Views of PIL images, made by torchvision.

Every random draw comes from PyTorch's generator: whoever seeds it fixes the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from solo_minent.data import augmentations as ops
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from solo_minent.data.augmentations import Operation, View
    from solo_minent.schema import DataConfig

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# (mean, std) of each channel in [0, 1]. CIFAR, STL-10, Tiny-ImageNet: MinEnt's constants.
# digits: over the train split at its native 8x8 pixels.
NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3058,) * 3, (0.3764,) * 3),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2762)),
    "stl10": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "tiny_imagenet": ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282)),
    "imagenet100": _IMAGENET,
    "imagenet": _IMAGENET,
    "custom": _IMAGENET,
}


def normalization(data: DataConfig) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, std) of a run: its own, or its data set's."""
    mean, std = NORMALIZATION.get(data.dataset, NORMALIZATION["custom"])
    return (
        data.mean if data.mean is not None else mean,
        data.std if data.std is not None else std,
    )


class GaussianBlur:
    """PIL's Gaussian blur with a radius drawn from U[low, high]."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image) -> Image:
        from PIL import ImageFilter

        radius = self.low + (self.high - self.low) * torch.rand(()).item()
        return image.filter(ImageFilter.GaussianBlur(radius=radius))


class Solarize:
    """Inverts the pixels from 128 up, PIL's default."""

    def __call__(self, image: Image) -> Image:
        from PIL import ImageOps

        return ImageOps.solarize(image, threshold=128)


class Equalize:
    """Flattens the histogram of each channel (PIL)."""

    def __call__(self, image: Image) -> Image:
        from PIL import ImageOps

        return ImageOps.equalize(image)


class ToNormalizedTensor:
    """uint8 RGB image -> float32 (3, H, W): torchvision's ToTensor and Normalize in one pass.

    Equal to them to the bit, and faster on small images, where their checks dominate.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(
                f"normalisation needs 3 means and 3 positive deviations: {mean}, {std}. "
                "Values are for pixels in [0, 1]. Set data.mean and data.std."
            )
        self.mean = torch.tensor([float(m) for m in mean])[:, None, None]
        self.std = torch.tensor([float(s) for s in std])[:, None, None]

    def __call__(self, image: Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self.mean).div_(self.std)


class MultiView:
    """Image -> list of views: `count` of each transform, in their order."""

    def __init__(self, transforms: Sequence[tuple[Callable[[Image], Tensor], int]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Image) -> list[Tensor]:
        return [transform(image) for transform, count in self.transforms for _ in range(count)]


def view_transform(
    view: View, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image], Tensor]:
    """RGB PIL image -> float32 (3, S, S), one view."""
    from torchvision import transforms as tv

    return tv.Compose([*map(_torchvision, view.operations), ToNormalizedTensor(mean, std)])


def multi_view(views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> MultiView:
    """RGB PIL image -> all of its views."""
    return MultiView([(view_transform(view, mean, std), view.count) for view in views])


def eval_transform(
    dataset: str, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image], Tensor]:
    """The deterministic test transform: RGB PIL image -> float32 (3, image_size, image_size).

    digits: bilinear resize; CIFAR and Tiny-ImageNet: bicubic resize if the size differs; STL-10:
    bicubic resize of the short side to image_size * 70 / 64 (MinEnt), then centre crop; folders of
    photographs: the same to image_size * 256 / 224.
    """
    from torchvision import transforms as tv

    if dataset == "digits":
        steps = [_resize(image_size, "bilinear")]
    elif dataset in ("cifar10", "cifar100", "tiny_imagenet"):
        steps = [_resize(image_size, "bicubic")]
    else:
        short = int(image_size * (70 / 64 if dataset == "stl10" else 256 / 224))
        steps = [
            tv.Resize(short, interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(image_size),
        ]
    return tv.Compose([*steps, ToNormalizedTensor(mean, std)])


def _resize(size: int, interpolation: str) -> Callable:
    """Square of `size`: short side resized, centre cut; nothing to do where it already fits."""
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(interpolation)
    return tv.Compose([tv.Resize(size, interpolation=mode), tv.CenterCrop(size)])


def _torchvision(operation: Operation) -> Callable:
    """The operation as a callable on PIL images."""
    from torchvision import transforms as tv

    match operation:
        case ops.Affine(degrees, translate, scale, shear):
            bilinear = tv.InterpolationMode.BILINEAR
            return tv.RandomAffine(degrees, translate, scale, shear, bilinear)
        case ops.Resize(size, interpolation):
            return _resize(size, interpolation)
        case ops.RandomResizedCrop(size, scale, interpolation, ratio):
            mode = tv.InterpolationMode(interpolation)
            return tv.RandomResizedCrop(size, scale, ratio, interpolation=mode)
        case ops.HorizontalFlip(prob):
            return tv.RandomHorizontalFlip(prob)
        case ops.ColorJitter(prob, brightness, contrast, saturation, hue):
            jitter = tv.ColorJitter(brightness, contrast, saturation, hue)
            return tv.RandomApply([jitter], prob)
        case ops.Grayscale(prob):
            return tv.RandomGrayscale(prob)
        case ops.GaussianBlur(prob, radius):
            return tv.RandomApply([GaussianBlur(*radius)], prob)
        case ops.Solarization(prob):
            return tv.RandomApply([Solarize()], prob)
        case ops.Equalization(prob):
            return tv.RandomApply([Equalize()], prob)
    raise TypeError(f"no such operation: {operation}")
