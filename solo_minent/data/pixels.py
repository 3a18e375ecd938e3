"""PIL's operations on batches of images, each sample with its own parameters.

Images are whole numbers of [0, 255] in float32 (B, 3, H, W), before and after. Parameters that come
as CPU tensors go to the device without waiting for it.

What is written out instead of called from kornia 0.9 has a measured reason (CIFAR-10, one core):
its crop is off PIL's by 1 to 2 levels on average (another grid, Keys' a = -3/4, no filter where it
shrinks), ours by 0.00, its blur by 0.8 at sigma 2, ours by 0.2; its affine warp mixes the edge with
black; its hue takes 50 us an image against 12, its equalisation 180 against 11.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's "L"


def send(values: Tensor, like: Tensor) -> Tensor:
    """To the device of `like`; from pinned memory, which the copy does not wait for."""
    if like.device.type == "cpu":
        return values
    return values.pin_memory().to(like.device, non_blocking=True)


def gray(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    luma = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return luma.round_()


def resized_crop(
    x: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flipped: Tensor,
    size: int,
    cubic: bool = True,
) -> Tensor:
    """A box of each sample, resized to (size, size) as PIL does, and mirrored where `flipped` is 1.

    x: (B, 3, H, W) in [0, 255]; the others: float (B,) on x's device, boxes in whole pixels.
    """
    rows = _resize_weights(top, height, x.shape[2], size, cubic)
    columns = _resize_weights(left, width, x.shape[3], size, cubic, flipped)
    return _separable(x, rows, columns)


def _resize_weights(
    start: Tensor, length: Tensor, old: int, new: int, cubic: bool, flipped: Tensor | None = None
) -> Tensor:
    """(B, new, old): the pixels start … start + length, resized to `new`, with PIL's filters."""
    at = torch.arange(new, device=start.device) + 0.5
    if flipped is not None:
        at = at + flipped[:, None] * (new - 2 * at)
    scale = length[:, None] / new
    source = torch.arange(old, device=start.device) + 0.5 - start[:, None]
    distance = (source[:, None, :] - (at * scale)[:, :, None]).abs_()
    distance /= scale.clamp(min=1)[:, :, None]
    near = (1 - distance).clamp_(min=0)
    if cubic:  # Keys' kernel with a = -1/2, as powers of what is left to its knots at 1 and 2
        far = (2 - distance).clamp_(min=0)
        near = near.square() * (1 - 2 * near) + 0.5 * far.square() * (far - 1)
    inside = (source > 0) & (source < length[:, None])
    near *= inside[:, None, :]
    return near.div_(near.sum(2, keepdim=True))


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows (B, h, H) and columns (B, w, W) applied to each channel of x: (B, 3, h, w).

    Columns first, and whole numbers after each pass, as PIL's.
    """
    count, _, high, wide = x.shape
    x = x.transpose(1, 2).reshape(count, high * 3, wide)
    x = torch.bmm(x, columns.transpose(1, 2)).clamp_(0, 255).round_()
    x = torch.bmm(rows, x.view(count, high, -1)).clamp_(0, 255).round_()
    return x.view(count, rows.shape[1], 3, columns.shape[1]).transpose(1, 2).contiguous()


def affine(x: Tensor, parameters: Tensor) -> Tensor:
    """torchvision's, bilinear on black, with a shear along x alone.

    parameters: (5, B) on the CPU, rows degrees, shift right and down in pixels, scale, shear in
    degrees.
    """
    angle, right, down, scale, shear = parameters
    angle, shear = angle.deg2rad(), shear.deg2rad()
    # From pixels of the result, about its centre, to those of x.
    cos, sin, tan = angle.cos() / scale, angle.sin() / scale, shear.tan()
    back = torch.stack([cos - tan * sin, sin + tan * cos, -sin, cos], dim=1).view(-1, 2, 2)
    shift = -back @ torch.stack([right, down], dim=1)[..., None]
    half = torch.tensor([x.shape[3] / 2, x.shape[2] / 2])
    theta = torch.cat([back * half, shift], dim=2) / half[:, None]
    grid = F.affine_grid(send(theta, x), list(x.shape), align_corners=False)
    # PIL repeats the edge for half a pixel and is black beyond.
    inside = (grid.abs() <= 1).all(3)[:, None]
    x = F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
    return x.add_(1e-3).floor_().mul_(inside)  # PIL cuts off


def jitter(x: Tensor, order: Tensor, factors: Tensor, turns: Tensor) -> Tensor:
    """torchvision's four adjustments, each sample in its own order.

    x: (B, 3, H, W), overwritten; on the CPU, order: int64 (B, 4), permutations of 0 brightness,
    1 contrast, 2 saturation, 3 hue, sorted by the place of 3; factors: (3, B) of the first three;
    turns: (B,) of the hue, 1 a whole turn.
    """
    kinds = order.T  # (4, B)
    factor = torch.cat([factors, torch.ones_like(turns)[None]]).gather(0, kinds)
    # A blend with the mean gray, the pixel's gray or black; at a hue's turn a factor of 1.
    weights = torch.stack([factor, kinds == 1, kinds == 2])
    weights = send(weights, x)[..., None, None, None]
    # A hue of 0 turns does nothing.
    ends = (order == 3).sum(0).cumsum(0).tolist() if turns.any() else [0] * 4
    turns = send(turns, x)
    for step, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        share, mean, own = weights[:, step]
        luma = gray(x)
        means = luma.mean((2, 3), keepdim=True).round_()
        other = luma.mul_(own).add_(means * mean)
        x = torch.lerp(other.expand_as(x), x, share).clamp_(0, 255).floor_()
        if start < end:
            x[start:end] = turn_hue(x[start:end], turns[start:end])
    return x


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """(B, 3, H, W), turns (B,): HSV's hue moved by that share of a whole turn."""
    red, green, blue = x.split(1, dim=1)
    high = x.amax(1, keepdim=True)
    span = high - x.amin(1, keepdim=True)
    # In sixths of a turn, times the span. No `where`, which is slow on a CPU: masks as numbers.
    is_red, is_green = (red == high).float(), (green == high).float()
    hue = (red - green).add_(span, alpha=4)
    hue += is_green * ((blue - red).add_(span, alpha=2) - hue)
    hue += is_red * (green - blue - hue)
    hue /= span.clamp(min=1e-6) * 6
    hue += turns[:, None, None, None]
    # A channel lacks `span` where the hue is over a third of a turn away, nothing within a sixth.
    away = hue - torch.arange(3, device=x.device)[:, None, None] / 3
    away = away.sub_(away.round()).abs_()
    return away.mul_(6).sub_(1).clamp_(0, 1).mul_(-span).add_(high).round_()


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """(B, 3, H, W) with PIL's Gaussian of standard deviation sigma (B,) on the CPU, edges repeated.

    PIL's is three box blurs of a width that is no whole number (Gwosdek et al., SSVM 2011).
    """
    variance = sigma.square() / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + part / (6 * (variance - (whole + 1).square()))
    reach = math.ceil(float(radius.max())) + 1
    radius = send(radius, x)
    weights = {size: _blur_weights(radius, size, reach) for size in set(x.shape[2:])}
    return _separable(x, *(weights[size] for size in x.shape[2:]))


def _blur_weights(radius: Tensor, size: int, reach: int) -> Tensor:
    """(B, size, size): three box blurs."""
    at = torch.arange(size, device=radius.device)
    taps = torch.arange(-reach, size + reach, device=radius.device)
    radius = radius[:, None, None]
    weights = (radius + 1 - (taps - at[:, None]).abs()).clamp_(0, 1).div_(2 * radius + 1)
    box = weights[..., reach : reach + size].contiguous()
    # What lies beyond an edge is the pixel at the edge.
    box[..., 0] += weights[..., :reach].sum(2)
    box[..., -1] += weights[..., reach + size :].sum(2)
    return box @ box @ box


def solarize(x: Tensor) -> Tensor:
    """Inverts whole numbers from 128 up."""
    return 127.5 - (x - 127.5).abs_()


def equalize(x: Tensor) -> Tensor:
    """PIL's equalisation of each channel's histogram; x: whole numbers."""
    pixels = x.flatten(2).long()
    counts = x.new_zeros(*pixels.shape[:2], 256).scatter_add_(
        2, pixels, x.new_ones(()).expand(pixels.shape)
    )
    above = counts.cumsum(2)
    # PIL spreads all but the pixels of the brightest level that occurs.
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = ((pixels.shape[2] - brightest) / 255).floor()
    levels = (((step / 2).floor() + above - counts) / step.clamp(min=1)).floor()
    levels = torch.where(step > 0, levels, torch.arange(256.0, device=x.device))
    return levels.clamp(max=255).gather(2, pixels).view_as(x)
