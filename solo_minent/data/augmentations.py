"""The schema of `augmentations`: solo-learn's YAML keys and ours, checked, as typed operations.

Who carries the operations out (PIL, DALI, the device) reads `View`s and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

Pair = tuple[float, float]
MAX_SIZE = 4096  # pixels; a view has its square
MAX_CROPS = 100


@dataclass(frozen=True)
class Affine:
    """Bilinear; degrees and shear in degrees, translate in shares of (width, height)."""

    degrees: Pair
    translate: Pair
    scale: Pair
    shear: Pair


@dataclass(frozen=True)
class Resize:
    """The short side to `size`, then the centre square."""

    size: int
    interpolation: str


@dataclass(frozen=True)
class RandomResizedCrop:
    """scale: shares of the area; ratio: width over height, drawn log-uniformly."""

    size: int
    scale: Pair
    interpolation: str
    ratio: Pair = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class HorizontalFlip:
    prob: float


@dataclass(frozen=True)
class ColorJitter:
    """Strengths as in torchvision, which applies the four in random order."""

    prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class Grayscale:
    prob: float


@dataclass(frozen=True)
class GaussianBlur:
    """radius: range of the standard deviation, in pixels (PIL's `radius`; BYOL's is [0.1, 2])."""

    prob: float
    radius: Pair


@dataclass(frozen=True)
class Solarization:
    """Inverts the pixels from 128 up, PIL's default."""

    prob: float


@dataclass(frozen=True)
class Equalization:
    """Flattens the histogram of each channel."""

    prob: float


Operation = (
    Affine
    | Resize
    | RandomResizedCrop
    | HorizontalFlip
    | ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarization
    | Equalization
)


@dataclass(frozen=True)
class View:
    """One entry of `augmentations`: `count` views of `size` pixels, `operations` in this order."""

    size: int
    count: int
    operations: tuple[Operation, ...]


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


def parse_views(augmentations: Sequence[Mapping[str, Any]], image_size: int) -> list[View]:
    """All entries of `augmentations`, large ones first: those as large as the first entry.

    An entry has solo-learn's keys (`rrc`, `color_jitter`, `grayscale`, `gaussian_blur`,
    `solarization`, `equalization`, `horizontal_flip`, `crop_size`, `num_crops`) and ours (`affine`,
    `rrc.interpolation`, `gaussian_blur.radius`, `order`). An operation that is absent, not
    `enabled`, or of `prob` 0 does nothing. `order` is a permutation of the enabled ones,
    `DEFAULT_ORDER` without it. `rrc.interpolation` is bicubic by default; without `rrc` the image
    is first resized to the crop size, bilinear by default. `image_size` is the size of an entry
    without `crop_size`.

    Raises:
        UserError: an unknown key, a value out of range, an order that does not fit.
    """
    if isinstance(augmentations, str) or not isinstance(augmentations, Sequence):
        augmentations = []
    if not len(augmentations):
        raise UserError(
            f"augmentations must be a list of at least one entry: {augmentations!r}. Each entry "
            "describes a kind of view. See the recipes."
        )
    views = [_view(aug, image_size) for aug in augmentations]
    return sorted(views, key=lambda view: view.size != views[0].size)


def views_at(config: RunConfig, epoch: int) -> list[View]:
    """The views of an epoch, counted from 0: those of `late_augmentations` from `late_epoch` on."""
    late = config.late_epoch is not None and epoch >= config.late_epoch
    entries = config.late_augmentations if late else config.augmentations
    return parse_views(entries, config.data.image_size)


def crop_counts(views: Sequence[View]) -> tuple[int, int]:
    """(number of large crops, number of small crops) of one image."""
    large = sum(view.count for view in views if view.size == views[0].size)
    return large, sum(view.count for view in views) - large


def _view(aug: Any, image_size: int) -> View:
    if not isinstance(aug, Mapping):
        raise UserError(f"an augmentation must be a mapping: {aug!r}. See the recipes.")
    sections = _sections(aug)
    size = aug.get("crop_size")
    size = _count("crop_size", image_size if size is None else size, MAX_SIZE)
    count = _count("num_crops", aug.get("num_crops", 1), MAX_CROPS)
    # Without a crop the resize is that of the test transform for digits, so that the two agree.
    default = "bicubic" if "rrc" in sections else "bilinear"
    interpolation = _interpolation((aug.get("rrc") or {}).get("interpolation", default))
    operations: list[Operation] = []
    if "rrc" not in sections:
        operations.append(Resize(size, interpolation))
    for name in _order(aug, sections):
        if name == "rrc":
            operations.append(RandomResizedCrop(size, _crop_scale(sections[name]), interpolation))
        else:
            operations.append(_PARSERS[name](sections[name]))
    return View(size, count, tuple(operations))


def _sections(aug: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of the operations that act, after checking every key of the entry."""
    if unknown := [key for key in aug if key not in (*_KEYS, *_TOP_KEYS)]:
        raise UserError(
            f"unknown augmentation: {', '.join(map(str, unknown))}. "
            f"Allowed: {', '.join((*_KEYS, *_TOP_KEYS))}. Correct augmentations."
        )
    acting = {}
    for name, keys in _KEYS.items():
        section = {} if aug.get(name) is None else aug[name]
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
            acting[name] = section
    return acting


def _order(aug: Mapping[str, Any], acting: Mapping[str, Any]) -> list[str]:
    order = aug.get("order")
    if order is None:
        return [name for name in DEFAULT_ORDER if name in acting]
    words = not isinstance(order, str) and isinstance(order, Sequence)
    if not words or not all(isinstance(name, str) for name in order):
        raise UserError(f"order must be a list: {order!r}. Set order: [rrc, horizontal_flip].")
    # An operation switched off by `prob: 0` may stay in the list.
    listed = {name for name in _KEYS if (aug.get(name) or {}).get("enabled", name in aug)}
    if not set(acting) <= set(order) <= listed or len(set(order)) != len(order):
        raise UserError(
            f"order does not name each enabled operation once: [{', '.join(map(str, order))}]. "
            f"Enabled: {', '.join(acting) or 'none'}. Correct augmentations.order."
        )
    return [name for name in order if name in acting]


def _number(name: str, value: Any, low: float, high: float) -> float:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not low <= value <= high:
        raise UserError(
            f"{name} is out of range: {value!r}. Allowed: {low} to {high}. Correct augmentations."
        )
    return float(value)


def _pair(name: str, value: Any, low: float, high: float) -> Pair:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise UserError(f"{name} must be two numbers: {value!r}. Correct augmentations.")
    a, b = (_number(name, v, low, high) for v in value)
    if a > b:
        raise UserError(f"{name} must rise: [{a}, {b}]. Correct augmentations.")
    return a, b


def _count(name: str, value: Any, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise UserError(
            f"{name} must be a positive number: {value!r}. At most {high}. Correct augmentations."
        )
    return value


def _interpolation(name: str) -> str:
    if name not in ("bilinear", "bicubic"):
        raise UserError(
            f"unknown interpolation: {name}. Allowed: bilinear, bicubic. Set rrc.interpolation."
        )
    return name


def _crop_scale(rrc: Mapping[str, Any]) -> Pair:
    low = _number("rrc.crop_min_scale", rrc.get("crop_min_scale", 0.08), 0, 1)
    high = _number("rrc.crop_max_scale", rrc.get("crop_max_scale", 1.0), 0, 1)
    if not 0 < low <= high:
        raise UserError(
            f"rrc crop scale out of range: [{low}, {high}]. Allowed: 0 < crop_min_scale <= "
            "crop_max_scale <= 1 (shares of the area). Correct augmentations.rrc."
        )
    return low, high


def _affine(section: Mapping[str, Any]) -> Affine:
    def span(key: str, limit: float) -> Pair:
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
    x, y = (_number("affine.translate", share, 0, 1) for share in translate)
    scale = _pair("affine.scale", section.get("scale", [1, 1]), 0.01, 100)
    return Affine(span("degrees", 180), (x, y), scale, span("shear", 89))


def _color_jitter(section: Mapping[str, Any]) -> ColorJitter:
    strengths = {
        key: _number(f"color_jitter.{key}", section.get(key, 0), 0, 0.5 if key == "hue" else 100)
        for key in ("brightness", "contrast", "saturation", "hue")
    }
    return ColorJitter(float(section["prob"]), **strengths)


def _gaussian_blur(section: Mapping[str, Any]) -> GaussianBlur:
    radius = _pair("gaussian_blur.radius", section.get("radius", [0.1, 2.0]), 0, 1000)
    return GaussianBlur(float(section["prob"]), radius)


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Operation]] = {
    "affine": _affine,
    "horizontal_flip": lambda section: HorizontalFlip(float(section["prob"])),
    "color_jitter": _color_jitter,
    "grayscale": lambda section: Grayscale(float(section["prob"])),
    "gaussian_blur": _gaussian_blur,
    "solarization": lambda section: Solarization(float(section["prob"])),
    "equalization": lambda section: Equalization(float(section["prob"])),
}
