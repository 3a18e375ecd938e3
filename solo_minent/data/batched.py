"""Views of a whole batch at once, on the device where the images lie.

Every sample draws its own parameters (torchvision's v2 draws them once a batch, as does kornia 0.9
the order of its colour jitter). All draws are made on the CPU by one generator: a batch is a
function of its seed, and which samples an operation picks is known without asking the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from solo_minent.data import augmentations as ops
from solo_minent.data.augmentations import Operation, View
from solo_minent.data.pixels import (
    affine,
    blur,
    equalize,
    gray,
    jitter,
    resized_crop,
    send,
    solarize,
)

# An operation and the probability of each view of a group; a crop's is that of its mirror image.
Step = tuple[Operation, tuple[float, ...]]


class BatchedViews:
    """Images -> all of their views, as `transforms.multi_view` makes them of PIL images.

    Views that differ in probabilities alone go through the operations as one tensor. Between the
    operations pixels are whole numbers of [0, 255] in float32, clipped and rounded as PIL does.
    """

    def __init__(self, views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = 255 * torch.tensor([float(m) for m in mean])[:, None, None]
        self.std = 255 * torch.tensor([float(s) for s in std])[:, None, None]
        self.groups = _groups(views)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """uint8 or float32 in [0, 1] (B, 3, H, W) -> float32 (B, 3, S, S) of each view, normalised.

        generator: on the CPU; PyTorch's default one without it.
        """
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        pixels = images if images.dtype == torch.uint8 else (images * 255).round()
        views: dict[int, Tensor] = {}
        for slots, steps in self.groups:
            x = pixels.repeat(len(slots), 1, 1, 1).float()
            for operation, probs in steps:
                coins = torch.rand(len(x), generator=generator)
                picked = coins < torch.tensor(probs).repeat_interleave(len(images))
                x = _apply(operation, x, picked, generator)
            x = x.sub_(self.mean).div_(self.std)
            views.update(zip(slots, x.split(len(images)), strict=True))
        return [views[slot] for slot in range(len(views))]


def _groups(views: Sequence[View]) -> list[tuple[list[int], list[Step]]]:
    """(which of the views, steps) of those that go together."""
    lists = [view.operations for view in views for _ in range(view.count)]
    groups: dict[tuple[Operation, ...], dict[int, list[float]]] = {}
    # Long lists first: a view without solarisation joins one with it, at probability 0.
    for slot in sorted(range(len(lists)), key=lambda slot: -len(lists[slot])):
        for pattern in [*groups, lists[slot]]:
            probs = _probabilities(lists[slot], pattern)
            if probs is not None:
                groups.setdefault(pattern, {})[slot] = probs
                break
    return [
        (list(members), _fold_flip(pattern, zip(*members.values(), strict=True)))
        for pattern, members in groups.items()
    ]


def _probabilities(
    operations: Sequence[Operation], pattern: Sequence[Operation]
) -> list[float] | None:
    """How often each operation of `pattern` acts in `operations`; None if those are others."""
    probs, rest = [], list(operations)
    for operation in pattern:
        certain = not hasattr(operation, "prob")
        if rest and _kind(rest[0]) == _kind(operation):
            probs.append(getattr(rest.pop(0), "prob", 1.0))
        elif certain:
            return None
        else:
            probs.append(0.0)
    return None if rest else probs


def _kind(operation: Operation) -> Operation:
    return replace(operation, prob=1.0) if hasattr(operation, "prob") else operation


def _fold_flip(operations: Sequence[Operation], probs: Iterable[tuple[float, ...]]) -> list[Step]:
    """A mirror image after a crop costs nothing: its weights are the crop's, reversed."""
    steps: list[Step] = []
    for operation, shares in zip(operations, probs, strict=True):
        cropped = steps and isinstance(steps[-1][0], ops.RandomResizedCrop)
        if cropped and isinstance(operation, ops.HorizontalFlip):
            steps[-1] = steps[-1][0], shares
        elif isinstance(operation, ops.RandomResizedCrop):
            steps.append((operation, (0.0,) * len(shares)))
        else:
            steps.append((operation, shares))
    return steps


def _apply(operation: Operation, x: Tensor, picked: Tensor, generator: Generator | None) -> Tensor:
    """x: float32 (B, 3, H, W), may be overwritten; picked: bool (B,) on the CPU."""
    match operation:
        case ops.Resize():
            return _resize(operation, x)
        case ops.RandomResizedCrop():
            return _crop(operation, x, picked, generator)
        case ops.Affine():
            return _affine(operation, x, generator)
        case ops.HorizontalFlip():
            return _some(x, picked, lambda y: y.flip(-1))
        case ops.ColorJitter():
            return _jitter(operation, x, picked, generator)
        case ops.Grayscale():
            return _some(x, picked, lambda y: gray(y).expand_as(y))
        case ops.GaussianBlur(_, radius):
            sigma = _uniform(int(picked.sum()), radius, generator)
            return _some(x, picked, lambda y: blur(y, sigma))
        case ops.Solarization():
            return _some(x, picked, solarize)
        case ops.Equalization():
            return _some(x, picked, equalize)
    raise TypeError(f"no such operation: {operation}")


def _some(x: Tensor, picked: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """x with the picked samples replaced by function(those samples)."""
    indices = picked.nonzero()[:, 0]
    if len(indices) == len(x):
        return function(x)
    if len(indices) == 0:
        return x
    return _put(x, indices, function)


def _put(x: Tensor, indices: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    there = send(indices, x)
    return x.index_copy_(0, there, function(x.index_select(0, there)))


def _uniform(count: int, span: tuple[float, float], generator: Generator | None) -> Tensor:
    return span[0] + (span[1] - span[0]) * torch.rand(count, generator=generator)


def _resize(operation: ops.Resize, x: Tensor) -> Tensor:
    """Short side and centre are the same for all samples: torchvision's own."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    mode = InterpolationMode(operation.interpolation)
    x = tv.resize(x, [operation.size], mode, antialias=True).clamp_(0, 255).round_()
    return tv.center_crop(x, [operation.size]).contiguous()


def _crop(
    operation: ops.RandomResizedCrop, x: Tensor, flipped: Tensor, generator: Generator | None
) -> Tensor:
    boxes = crop_boxes(operation, x.shape[-2:], len(x), generator).float()
    boxes = send(torch.cat([boxes, flipped[None].float()]), x)
    return resized_crop(x, *boxes, size=operation.size, cubic=operation.interpolation == "bicubic")


def crop_boxes(
    operation: ops.RandomResizedCrop,
    shape: Sequence[int],
    count: int,
    generator: Generator | None = None,
) -> Tensor:
    """torchvision's draw for an image of (H, W): int64 (4, count), rows top, left, height, width.

    The first of ten tries that fits inside; else the largest centred box of an allowed ratio.
    """
    high, wide = shape
    u = torch.rand(4, count, 10, generator=generator, dtype=torch.float64)
    area = high * wide * (operation.scale[0] + (operation.scale[1] - operation.scale[0]) * u[0])
    low, up = (math.log(limit) for limit in operation.ratio)
    ratio = (low + (up - low) * u[1]).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= wide) & (h > 0) & (h <= high)
    top, left = (u[2] * (high - h + 1)).floor(), (u[3] * (wide - w + 1)).floor()
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    boxes = torch.stack([box.gather(1, first)[:, 0] for box in (top, left, h, w)])
    ratio_in = min(max(wide / high, operation.ratio[0]), operation.ratio[1])
    w_in, h_in = min(wide, round(high * ratio_in)), min(high, round(wide / ratio_in))
    centre = torch.tensor([(high - h_in) // 2, (wide - w_in) // 2, h_in, w_in])
    return torch.where(fits.any(1), boxes.long(), centre[:, None])


def _affine(operation: ops.Affine, x: Tensor, generator: Generator | None) -> Tensor:
    count, _, high, wide = x.shape
    limits = torch.tensor([wide, high]) * torch.tensor(operation.translate)
    parameters = torch.stack(
        [
            _uniform(count, operation.degrees, generator),
            *((2 * torch.rand(2, count, generator=generator) - 1) * limits[:, None]).round(),
            _uniform(count, operation.scale, generator),
            _uniform(count, operation.shear, generator),
        ]
    )
    return affine(x, parameters)


def _jitter(
    operation: ops.ColorJitter, x: Tensor, picked: Tensor, generator: Generator | None
) -> Tensor:
    indices = picked.nonzero()[:, 0]
    if len(indices) == 0:
        return x
    order = torch.rand(len(indices), 4, generator=generator).argsort(1)
    strengths = (operation.brightness, operation.contrast, operation.saturation)
    factors = [
        _uniform(len(indices), (max(0.0, 1 - strength), 1 + strength), generator)
        for strength in strengths
    ]
    turns = _uniform(len(indices), (-operation.hue, operation.hue), generator)
    # Samples in the order of their hue's turn: at each step the hue is a slice.
    when = (order == 3).to(torch.uint8).argmax(1)
    by_turn = when.argsort(stable=True)
    factors = torch.stack(factors)[:, by_turn]
    order, turns = order[by_turn], turns[by_turn]
    return _put(x, indices[by_turn], lambda y: jitter(y, order, factors, turns))
