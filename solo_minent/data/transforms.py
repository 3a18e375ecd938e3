"""Augmentations from solo-learn's YAML keys, executed by torchvision on PIL images.

Every random draw comes from PyTorch's generator: whoever seeds it fixes the view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

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

DEFAULT_ORDER = (
    "affine",
    "rrc",
    "horizontal_flip",
    "color_jitter",
    "grayscale",
    "gaussian_blur",
    "solarization",
    "equalization",
)
# Keys of each operation besides `enabled`. An operation with `prob` must say it.
_KEYS: dict[str, tuple[str, ...]] = {
    "affine": ("degrees", "translate", "scale", "shear"),
    "rrc": ("crop_min_scale", "crop_max_scale", "interpolation"),
    "horizontal_flip": ("prob",),
    "color_jitter": ("prob", "brightness", "contrast", "saturation", "hue"),
    "grayscale": ("prob",),
    "gaussian_blur": ("prob", "radius"),
    "solarization": ("prob",),
    "equalization": ("prob",),
}
_TOP_KEYS = ("crop_size", "num_crops", "order")


class GaussianBlur:
    """PIL's Gaussian blur with a radius drawn from U[low, high] (BYOL's range is [0.1, 2])."""

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
    """Image -> list of views: `num_crops` of each transform, in their order."""

    def __init__(self, transforms: Sequence[tuple[Callable[[Image], Tensor], int]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Image) -> list[Tensor]:
        return [transform(image) for transform, count in self.transforms for _ in range(count)]


def build_view_transform(
    aug: Mapping[str, Any], image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image], Tensor]:
    """One entry of `augmentations` as a function: RGB PIL image -> float32 (3, S, S).

    aug: solo-learn's keys (`rrc`, `color_jitter`, `grayscale`, `gaussian_blur`, `solarization`,
        `equalization`, `horizontal_flip`, `crop_size`, `num_crops`) and ours (`affine`,
        `rrc.interpolation`, `gaussian_blur.radius`, `order`). An operation that is absent, not
        `enabled`, or of `prob` 0 does nothing. `order` is a permutation of the enabled ones,
        `DEFAULT_ORDER` without it. `rrc.interpolation` is bicubic by default; without `rrc` the
        image is first resized to S (short side, then the centre), bilinear by default.
    image_size: S where the entry has no `crop_size`.

    Raises UserError on an unknown key, a value out of range, an order that does not fit.
    """
    from torchvision import transforms as tv

    steps = []
    ops = _operations(aug)
    size = crop_size(aug, image_size)
    # Without a crop the resize is that of `eval_transform` for digits, so that the two agree.
    default = "bicubic" if "rrc" in ops else "bilinear"
    interpolation = _interpolation(_section(aug, "rrc").get("interpolation", default))
    if "rrc" not in ops:
        steps.append(_resize(size, interpolation))
    for name in _order(aug, ops):
        if name == "rrc":
            steps.append(
                tv.RandomResizedCrop(size, _crop_scale(ops[name]), interpolation=interpolation)
            )
        else:
            steps.append(_BUILDERS[name](ops[name]))
    return tv.Compose([*steps, ToNormalizedTensor(mean, std)])


def build_multi_view(
    augmentations: Sequence[Mapping[str, Any]],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> MultiView:
    """All entries of `augmentations`, large crops first (see `crop_counts`)."""
    large, small = _split_by_size(augmentations, image_size)
    return MultiView(
        [(build_view_transform(a, image_size, mean, std), num_crops(a)) for a in large + small]
    )


def crop_counts(
    augmentations: Sequence[Mapping[str, Any]], image_size: int | None = None
) -> tuple[int, int]:
    """(number of large crops, number of small crops) of one image.

    As in solo-learn an entry is large if its crop_size equals that of the first entry.
    """
    large, small = _split_by_size(augmentations, image_size)
    return sum(map(num_crops, large)), sum(map(num_crops, small))


def eval_transform(
    dataset: str, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image], Tensor]:
    """The deterministic test transform: RGB PIL image -> float32 (3, image_size, image_size).

    digits: bilinear resize; CIFAR and Tiny-ImageNet: bicubic resize if the size differs; folders of
    photographs: bicubic resize of the short side to image_size * 256 / 224, then centre crop.
    """
    from torchvision import transforms as tv

    if dataset == "digits":
        steps = [_resize(image_size, tv.InterpolationMode.BILINEAR)]
    elif dataset in ("cifar10", "cifar100", "tiny_imagenet"):
        steps = [_resize(image_size, tv.InterpolationMode.BICUBIC)]
    else:
        short = int(image_size * 256 / 224)
        steps = [
            tv.Resize(short, interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(image_size),
        ]
    return tv.Compose([*steps, ToNormalizedTensor(mean, std)])


def crop_size(aug: Mapping[str, Any], image_size: int | None) -> int:
    """The side of the views of one entry, in pixels."""
    size = aug.get("crop_size")
    return _positive("crop_size", image_size if size is None else size)


def num_crops(aug: Mapping[str, Any]) -> int:
    """How many views one entry makes of an image (default 1)."""
    return _positive("num_crops", aug.get("num_crops", 1))


def _split_by_size(
    augmentations: Sequence[Mapping[str, Any]], image_size: int | None
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    if not isinstance(augmentations, Sequence) or not len(augmentations):
        raise UserError(
            f"augmentations must be a list of at least one entry: {augmentations!r}. Each entry "
            "describes a kind of view. See the recipes."
        )
    for aug in augmentations:
        if not isinstance(aug, Mapping):
            raise UserError(f"an augmentation must be a mapping: {aug!r}. See the recipes.")
    sizes = [aug.get("crop_size") or image_size for aug in augmentations]
    pairs = list(zip(augmentations, sizes, strict=True))
    return (
        [aug for aug, size in pairs if size == sizes[0]],
        [aug for aug, size in pairs if size != sizes[0]],
    )


def _section(aug: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = aug.get(name)
    return {} if section is None else section


def _operations(aug: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The operations that act, after checking every key of the entry."""
    if unknown := [key for key in aug if key not in (*_KEYS, *_TOP_KEYS)]:
        raise UserError(
            f"unknown augmentation: {', '.join(map(str, unknown))}. "
            f"Allowed: {', '.join((*_KEYS, *_TOP_KEYS))}. Correct augmentations."
        )
    num_crops(aug)
    ops = {}
    for name, keys in _KEYS.items():
        section = _section(aug, name)
        if not isinstance(section, Mapping):
            raise UserError(f"{name} must be a mapping: {section!r}. Correct augmentations.{name}.")
        if unknown := [key for key in section if key not in (*keys, "enabled")]:
            raise UserError(
                f"unknown key of {name}: {', '.join(map(str, unknown))}. "
                f"Allowed: {', '.join(('enabled', *keys))}. Correct augmentations.{name}."
            )
        enabled = section.get("enabled", bool(section))
        if not isinstance(enabled, bool):
            raise UserError(f"{name}.enabled must be true or false: {enabled!r}. Correct it.")
        if "prob" in section:
            prob = _number(f"{name}.prob", section["prob"], 0, 1)
        elif enabled and "prob" in keys:
            raise UserError(f"{name} is enabled without a probability: prob. Set {name}.prob.")
        else:
            prob = 1.0
        if enabled and prob > 0:
            ops[name] = section
    return ops


def _order(aug: Mapping[str, Any], ops: Mapping[str, Any]) -> list[str]:
    order = aug.get("order")
    if order is None:
        return [name for name in DEFAULT_ORDER if name in ops]
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise UserError(f"order must be a list: {order!r}. Set order: [rrc, horizontal_flip].")
    # An operation switched off by `prob: 0` may stay in the list.
    listed = {name for name in _KEYS if _section(aug, name).get("enabled", name in aug)}
    if not set(ops) <= set(order) <= listed or len(set(order)) != len(order):
        raise UserError(
            f"order does not name each enabled operation once: [{', '.join(map(str, order))}]. "
            f"Enabled: {', '.join(ops) or 'none'}. Correct augmentations.order."
        )
    return [name for name in order if name in ops]


def _number(name: str, value: Any, low: float, high: float) -> float:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not low <= value <= high:
        raise UserError(
            f"{name} is out of range: {value!r}. Allowed: {low} to {high}. Correct augmentations."
        )
    return float(value)


def _pair(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise UserError(f"{name} must be two numbers: {value!r}. Correct augmentations.")
    a, b = (_number(name, v, low, high) for v in value)
    if a > b:
        raise UserError(f"{name} must rise: [{a}, {b}]. Correct augmentations.")
    return a, b


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a positive number: {value!r}. Correct augmentations.")
    return value


def _crop_scale(rrc: Mapping[str, Any]) -> tuple[float, float]:
    low = _number("rrc.crop_min_scale", rrc.get("crop_min_scale", 0.08), 0, 1)
    high = _number("rrc.crop_max_scale", rrc.get("crop_max_scale", 1.0), 0, 1)
    if not 0 < low <= high:
        raise UserError(
            f"rrc crop scale out of range: [{low}, {high}]. Allowed: 0 < crop_min_scale <= "
            "crop_max_scale <= 1 (shares of the area). Correct augmentations.rrc."
        )
    return low, high


def _interpolation(name: str) -> Any:
    from torchvision.transforms import InterpolationMode

    modes = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    if name not in modes:
        raise UserError(
            f"unknown interpolation: {name}. Allowed: bilinear, bicubic. Set rrc.interpolation."
        )
    return modes[name]


def _resize(size: int, interpolation: Any) -> Any:
    """Square of `size`: short side resized, centre cut; nothing to do where it already fits."""
    from torchvision import transforms as tv

    return tv.Compose([tv.Resize(size, interpolation=interpolation), tv.CenterCrop(size)])


def _applied(transform: Callable, section: Mapping[str, Any]) -> Callable:
    from torchvision import transforms as tv

    return tv.RandomApply([transform], p=float(section["prob"]))


def _affine(section: Mapping[str, Any]) -> Callable:
    from torchvision import transforms as tv

    def span(key: str, limit: float) -> tuple[float, float]:
        value = section.get(key, 0)
        if isinstance(value, Sequence):
            return _pair(f"affine.{key}", value, -limit, limit)
        bound = _number(f"affine.{key}", value, 0, limit)
        return -bound, bound

    translate = section.get("translate", 0)
    if not isinstance(translate, Sequence):
        translate = [translate, translate]
    if len(translate) != 2:
        raise UserError(f"affine.translate must be two shares: {translate!r}. Correct it.")
    scale = _pair("affine.scale", section.get("scale", [1, 1]), 0.01, 100)
    return tv.RandomAffine(
        degrees=span("degrees", 180),
        translate=tuple(_number("affine.translate", t, 0, 1) for t in translate),
        scale=scale,
        shear=span("shear", 89),
        interpolation=tv.InterpolationMode.BILINEAR,
    )


def _with_prob(name: str, section: Mapping[str, Any]) -> Callable:
    from torchvision import transforms as tv

    return getattr(tv, name)(p=float(section["prob"]))


def _color_jitter(section: Mapping[str, Any]) -> Callable:
    from torchvision import transforms as tv

    strengths = {
        key: _number(f"color_jitter.{key}", section.get(key, 0), 0, 0.5 if key == "hue" else 100)
        for key in ("brightness", "contrast", "saturation", "hue")
    }
    return _applied(tv.ColorJitter(**strengths), section)


def _gaussian_blur(section: Mapping[str, Any]) -> Callable:
    low, high = _pair("gaussian_blur.radius", section.get("radius", [0.1, 2.0]), 0, 1000)
    return _applied(GaussianBlur(low, high), section)


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], Callable]] = {
    "affine": _affine,
    "horizontal_flip": lambda section: _with_prob("RandomHorizontalFlip", section),
    "color_jitter": _color_jitter,
    "grayscale": lambda section: _with_prob("RandomGrayscale", section),
    "gaussian_blur": _gaussian_blur,
    "solarization": lambda section: _applied(Solarize(), section),
    "equalization": lambda section: _applied(Equalize(), section),
}
