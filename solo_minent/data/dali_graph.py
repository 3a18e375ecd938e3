"""The DALI graph of a batch: every image is decoded once, then its views are made.

What an operation does to an image is decided by numbers that come from outside
(`data.dali_views`). An image is uint8 HWC until an operation needs arithmetic, then three float32
planes (HW) in [0, 255]: DALI's CPU arithmetic is fast on planes, its conversion back to uint8 is
not. Nothing is rounded between the operations on planes, where PIL rounds after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from solo_minent.data.dali_views import NUMBERS, Stage, ViewPlan

LUMA = (0.299, 0.587, 0.114)  # of PIL's conversion to grey


def build_pipeline(
    plans: Sequence[ViewPlan],
    mean: Sequence[float],
    std: Sequence[float],
    source: Callable[[], list],
    options: dict[str, Any],
) -> Any:
    """A built DALI pipeline with one output float32 (3, S, S) for each view.

    Args:
        plans: one for each view.
        mean: of the channels, for pixels in [0, 1].
        std: of the channels.
        source: gives a batch each time it is called: a list of files (uint8 arrays), then the
            numbers of each view in the order of `ViewPlan.numbers`, one array each; raises
            StopIteration at the end of an epoch.
        options: batch_size, num_threads, prefetch_queue_depth, and device_id: None for the CPU.
    """
    from nvidia.dali import pipeline_def

    gpu = options["device_id"] is not None

    @pipeline_def(enable_conditionals=True)
    def pipeline() -> tuple:
        from nvidia.dali import fn, types

        dtypes = {np.float32: types.FLOAT, np.int32: types.INT32, np.bool_: types.BOOL}
        numbers = [number for plan in plans for number in plan.numbers]
        files, *given = fn.external_source(
            source=source,
            num_outputs=1 + len(numbers),
            dtype=[types.UINT8, *[dtypes[number.dtype] for number in numbers]],
            ndim=[1, *[int(number.width > 1) for number in numbers]],
        )
        image = fn.decoders.image(
            files,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
        )
        views = []
        for plan in plans:
            mine, given = given[: len(plan.numbers)], given[len(plan.numbers) :]
            views.append(_view(image, plan.stages, mine, gpu, (mean, std)))
        return tuple(views)

    built = pipeline(**options)
    built.build()
    return built


def _view(image: Any, stages: tuple[Stage, ...], given: list, gpu: bool, constants: tuple) -> Any:
    planes = None
    for stage in stages:
        count = len(NUMBERS[stage.kind])
        args, given = given[:count], given[count:]
        if stage.kind in ("resample", "jitter", "equalize") and planes is not None:
            image, planes = _pixels(planes), None
        if stage.kind == "blur" and planes is None:
            planes = _planes(image)
        if stage.kind == "resample":
            image = _resample(image, stage, args)
        elif stage.kind == "jitter":
            planes = _jitter(image, args, gpu)
        elif stage.kind == "gray":
            if planes is None:
                image = _gray(image, args)
            else:
                planes = _gray_planes(planes, args)
        elif stage.kind == "blur":
            planes = _blur(planes, args)
        elif stage.kind == "solarize":
            if planes is None:
                image = _solarize(image, args)
            else:
                planes = _solarize_planes(planes, args)
        else:
            image = _equalize(image, args)
    return _normalized(image, planes, *constants)


def _normalized(image: Any, planes: tuple | None, mean: Any, std: Any) -> Any:
    from nvidia.dali import fn, types

    if planes is None:
        return fn.crop_mirror_normalize(
            image,
            mean=[255 * m for m in mean],
            std=[255 * s for s in std],
            dtype=types.FLOAT,
            output_layout="CHW",
        )
    normal = [
        planes[c] * _constant(1 / (255 * std[c])) - _constant(mean[c] / std[c]) for c in range(3)
    ]
    return fn.stack(*normal, axis=0)


def _constant(value: float) -> Any:
    from nvidia.dali import types

    return types.Constant(np.float32(value), dtype=types.FLOAT)


def _planes(image: Any) -> tuple:
    from nvidia.dali import fn, types

    return tuple(fn.cast(image[:, :, channel], dtype=types.FLOAT) for channel in range(3))


def _pixels(planes: tuple) -> Any:
    from nvidia.dali import fn, types

    stacked = fn.stack(*planes, axis=2)
    return fn.reshape(fn.cast(stacked, dtype=types.UINT8), layout="HWC")


def _resample(image: Any, stage: Stage, args: list) -> Any:
    from nvidia.dali import fn, types

    anchor, shape, start, end = args
    modes = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    # PIL's resampling sees nothing outside the box; DALI's region of interest would.
    part = fn.slice(image, anchor, shape, axes=[0, 1])
    return fn.resize(
        part,
        size=[stage.size, stage.size],
        roi_start=start,
        roi_end=end,
        interp_type=modes[stage.interpolation],
        antialias=True,
    )


def _luma(image: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def _plane_luma(planes: Sequence[Any]) -> Any:
    red, green, blue = planes
    return red * _constant(LUMA[0]) + green * _constant(LUMA[1]) + blue * _constant(LUMA[2])


def _jitter(image: Any, args: list, gpu: bool) -> tuple:
    on, numbers = args[0], args[1:]
    if on:
        red, green, blue = _jittered_planes(image, numbers, gpu)
    else:
        red, green, blue = _planes(image)
    return red, green, blue


def _jittered_planes(image: Any, args: list, gpu: bool) -> tuple:
    """Brightness and contrast in their drawn order, then saturation, then hue.

    All four are equivariant under x -> a x + b, so that any order gives the same but for pixels
    that clip between two steps, and for the luma, which hue moves a little, as contrast's centre
    and in saturation's blend.
    """
    from nvidia.dali import fn
    from nvidia.dali import math as dm

    for factor, center, shift in (args[:3], args[3:6]):
        image = _contrast(image, factor, center, shift, gpu)
    own, following, last, span, saturation, gray, cut = (
        arg.gpu() if gpu else arg for arg in args[6:]
    )
    x = [image[:, :, channel] for channel in range(3)]
    top, bottom = dm.max(dm.max(x[0], x[1]), x[2]), dm.min(dm.min(x[0], x[1]), x[2])
    blend = fn.reshape(_luma(image), rel_shape=[1, 1], layout="HW") * gray + cut
    high = dm.min(top * saturation + blend, _constant(255))
    low = dm.max(bottom * saturation + blend, _constant(0))
    base = top * span + bottom * span + blend
    first, second, third = ([plane * weight for plane in x] for weight in (own, following, last))
    return tuple(
        dm.max(dm.min(first[c] + second[(c + 1) % 3] + third[(c + 2) % 3] + base, high), low)
        for c in range(3)
    )


def _contrast(image: Any, factor: Any, center: Any, shift: Any, gpu: bool) -> Any:
    """uint8: c + factor (x - c) + shift; c is 0 (brightness) or the mean luma (contrast)."""
    from nvidia.dali import fn, types
    from nvidia.dali import math as dm

    mean = fn.reductions.mean(_luma(image))
    if not gpu:
        return fn.brightness_contrast(
            image, contrast=factor, contrast_center=mean * center, brightness_shift=shift
        )
    factor, center, shift = factor.gpu(), center.gpu(), shift.gpu()
    moved = image * factor + (mean * center * (_constant(1) - factor) + shift * _constant(255))
    return fn.cast(dm.clamp(moved, _constant(0), _constant(255)), dtype=types.UINT8)


def _gray(image: Any, args: list) -> Any:
    from nvidia.dali import fn, types

    if args[0]:
        image = fn.color_space_conversion(
            _luma(image), image_type=types.GRAY, output_type=types.RGB
        )
    return image


def _gray_planes(planes: tuple, args: list) -> tuple:
    red, green, blue = planes
    if args[0]:
        luma = _plane_luma(planes)
        red, green, blue = luma, luma, luma
    return red, green, blue


def _blur(planes: tuple, args: list) -> tuple:
    from nvidia.dali import fn

    on, sigma, window = args
    red, green, blue = planes
    if on:
        red = fn.gaussian_blur(red, sigma=sigma, window_size=window)
        green = fn.gaussian_blur(green, sigma=sigma, window_size=window)
        blue = fn.gaussian_blur(blue, sigma=sigma, window_size=window)
    return red, green, blue


def _inverted(pixels: Any, white: Any) -> Any:
    from nvidia.dali import math as dm

    return dm.min(pixels, white - pixels)  # from 128 up, 255 - x is the smaller one


def _solarize(image: Any, args: list) -> Any:
    from nvidia.dali import types

    if args[0]:
        image = _inverted(image, types.Constant(np.uint8(255), dtype=types.UINT8))
    return image


def _solarize_planes(planes: tuple, args: list) -> tuple:
    red, green, blue = planes
    if args[0]:
        white = _constant(255)
        red, green, blue = _inverted(red, white), _inverted(green, white), _inverted(blue, white)
    return red, green, blue


def _equalize(image: Any, args: list) -> Any:
    """DALI's, which does not count a channel's darkest value as PIL counts it."""
    from nvidia.dali import fn

    if args[0]:
        image = fn.equalize(image)
    return image
