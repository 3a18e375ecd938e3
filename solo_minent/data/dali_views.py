"""The numbers by which `data.dali_graph` makes a view, drawn as PIL's view draws (`data.draws`)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from solo_minent.data import augmentations as ops
from solo_minent.data.augmentations import View
from solo_minent.data.draws import Box, Draw, Jitter, draw
from solo_minent.errors import UserError

# PIL's blends cut the fraction off where DALI rounds: half a grey level less, on average.
_CUT = -0.499 / 255


@dataclass(frozen=True)
class Number:
    """An input of the graph, one of `width` values (a scalar for 1) for each image."""

    name: str
    dtype: type
    width: int = 1


@dataclass(frozen=True)
class Stage:
    """One operation in the graph. resample: the crop or resize, which also does the flip."""

    kind: str
    size: int = 0
    interpolation: str = ""


NUMBERS = {
    "resample": (
        Number("anchor", np.int32, 2),
        Number("shape", np.int32, 2),
        Number("start", np.float32, 2),
        Number("end", np.float32, 2),
    ),
    "jitter": (
        Number("on", np.bool_),
        *(
            Number(f"{name}{step}", np.float32)
            for step in (1, 2)
            for name in ("factor", "center", "shift")
        ),
        *(Number(name, np.float32) for name in ("own", "next", "last", "range", "saturation")),
        Number("gray", np.float32),
        Number("cut", np.float32),
    ),
    "gray": (Number("on", np.bool_),),
    "blur": (
        Number("on", np.bool_),
        Number("sigma", np.float32),
        Number("window", np.int32),
    ),
    "solarize": (Number("on", np.bool_),),
    "equalize": (Number("on", np.bool_),),
}
_KINDS = {
    ops.Resize: "resample",
    ops.RandomResizedCrop: "resample",
    ops.ColorJitter: "jitter",
    ops.Grayscale: "gray",
    ops.GaussianBlur: "blur",
    ops.Solarization: "solarize",
    ops.Equalization: "equalize",
}


class ViewPlan:
    """How DALI makes a view: `stages` (what the graph is built from) and the numbers for them.

    Raises:
        UserError: an affine map, which is not done here.
    """

    def __init__(self, view: View) -> None:
        if any(isinstance(operation, ops.Affine) for operation in view.operations):
            raise UserError(
                "the DALI loader has no affine map: augmentations.affine. It does rrc, "
                "horizontal_flip, color_jitter, grayscale, gaussian_blur, solarization and "
                "equalization. Set affine.enabled=false, or data.format=image_folder."
            )
        self.view = view
        self.stages = tuple(
            Stage(_KINDS[type(o)], getattr(o, "size", 0), getattr(o, "interpolation", ""))
            for o in view.operations
            if type(o) in _KINDS
        )

    @property
    def numbers(self) -> list[Number]:
        """The graph's inputs for this view, in the order of `draw`."""
        return [number for stage in self.stages for number in NUMBERS[stage.kind]]

    def draw(self, height: int, width: int) -> np.ndarray:
        """float64 (sum of the numbers' widths,) for an image, from PyTorch's generator."""
        draws = draw(self.view, height, width)
        drawn = list(zip(self.view.operations, draws, strict=True))
        values: list[float] = []
        flipped = False  # so far
        flips = sum(d is True for o, d in drawn if isinstance(o, ops.HorizontalFlip)) % 2 == 1
        for operation, d in drawn:
            match operation:
                case ops.HorizontalFlip():
                    flipped ^= bool(d)
                case ops.Resize(size):
                    values += _squared(height, width, size, flips)
                case ops.RandomResizedCrop():
                    values += _cropped(d, width, flipped, flips)
                case ops.ColorJitter():
                    values += _jittered(d)
                case ops.GaussianBlur():
                    values += _blurred(d)
                case _:
                    values.append(bool(d))
        return np.array(values, dtype=np.float64)


def _cropped(box: Box, width: int, flipped: bool, flips: bool) -> list[float]:
    # A flip before the crop is one after it with the box on the other side.
    left = width - box.left - box.width if flipped else box.left
    ends = (box.width, 0) if flips else (0, box.width)
    return [box.top, left, box.height, box.width, 0, ends[0], box.height, ends[1]]


def _squared(height: int, width: int, size: int, flips: bool) -> list[float]:
    """torchvision's Resize and CenterCrop as one resampling of a part of the image."""
    short = min(height, width)
    new = [size if s == short else int(size * s / short) for s in (height, width)]
    if height == width:
        new = [size, size]
    offset = [int(round((n - size) / 2.0)) for n in new]
    (top, left), scale = offset, (height / new[0], width / new[1])
    x = [left * scale[1], (left + size) * scale[1]]
    if flips:
        x.reverse()
    return [0, 0, height, width, top * scale[0], x[0], (top + size) * scale[0], x[1]]


def _jittered(jitter: Draw) -> list[float]:
    """The numbers of `_jitter`, with hue as in PIL: in steps of 1/256 of the circle."""
    if not isinstance(jitter, Jitter):
        return [False, *(1, 0, 0), *(1, 0, 0), *(1, 0, 0, 0), 1, 0, 0]
    values: list[float] = [True]
    for step in jitter.order:
        factor = (jitter.brightness, jitter.contrast)[step] if step < 2 else None
        if factor is not None:
            values += [factor, step, _CUT if factor != 1 else 0]
    s = jitter.saturation
    values += [s * weight for weight in hue_weights(int(jitter.hue * 255) / 256)]
    return [*values, s, 1 - s, 0.0 if s == 1 else -0.5]


def hue_weights(turn: float) -> tuple[float, float, float, float]:
    """A turn of the hue (in circles, HSV), exactly, without leaving RGB.

    With V and m the largest and the smallest of a pixel's channels, each channel x, followed
    cyclically by y and z in R, G, B, becomes clamp(a x + b y + c z + d (V + m), m, V). Returns
    (a, b, c, d). Value and saturation stay, as V and m do; on each of the six edges of the colour
    hexagon the hue is piecewise linear in the channels, and the clamp makes the pieces.
    """
    sixths = 6 * turn
    rotations = round(sixths / 2)  # a third of the circle moves the channels on
    rest = sixths - 2 * rotations
    weights = [1.0, -1.0, 2 * rest - 1] if rest >= 0 else [1.0, -2 * rest - 1, -1.0]
    shift = rotations % 3
    a, b, c = weights[shift:] + weights[:shift]
    return a, b, c, 1 - abs(rest)


def _blurred(radius: Draw) -> list[float]:
    if radius is None or radius <= 0:
        return [False, 1, 3]
    reach = math.ceil(2.5 * radius)
    sigma = np.interp(radius, *_sigmas(reach))
    return [True, float(sigma), 2 * reach + 1]


@functools.cache
def _sigmas(reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii with this reach, close together, and the sigma of each."""
    radii = np.linspace((reach - 1) / 2.5, reach / 2.5, 65)
    return radii, np.array([_sigma(radius, reach) for radius in radii])


def _sigma(radius: float, reach: int) -> float:
    """The sigma whose Gaussian, sampled and cut off at `reach`, has the variance radius ** 2.

    PIL's blur has that variance exactly. A sampled Gaussian below half a pixel has far less.
    """
    squares = [x * x for x in range(1, reach + 1)]
    low, high = 0.0, 8 * radius + 1
    for _ in range(20):
        middle = (low + high) / 2
        weights = [math.exp(x2 / (-2 * middle * middle)) for x2 in squares]
        variance = 2 * sum(w * x2 for w, x2 in zip(weights, squares, strict=True))
        if variance < radius * radius * (1 + 2 * sum(weights)):
            low = middle
        else:
            high = middle
    return high
