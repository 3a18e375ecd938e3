"""PIL's operations on batches: against PIL and torchvision, with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from solo_minent.data import pixels


@pytest.fixture(scope="module")
def photos():
    """48 pieces of two photographs: 36 x 32, and two of one colour."""
    cut = []
    for whole in load_sample_images().images:
        image = Image.fromarray(whole).resize((36 * 6, 32 * 4), Image.Resampling.LANCZOS)
        boxes = [(x, y, x + 36, y + 32) for x in range(0, 216, 36) for y in range(0, 128, 32)]
        cut += [image.crop(box) for box in boxes]
    return [*cut[:-2], Image.new("RGB", (36, 32)), Image.new("RGB", (36, 32), (9, 200, 90))]


def stack(images):
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float()


def assert_close(got, images, worst, beyond=0.0, mean=0.05, apart=1):
    """At most `worst` levels from PIL, more than `apart` in a share of `beyond`; mean and range."""
    expected = stack(images)
    away = (got - expected).abs()
    assert got.shape == expected.shape
    assert torch.equal(got, got.round())
    assert got.min() >= 0
    assert got.max() <= 255
    assert away.max() <= worst
    assert (away > apart).float().mean() <= beyond
    assert abs((got - expected).mean()) <= mean


def same(value, count=48):
    return torch.full((count,), float(value))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 20, 50])
def test_crop(photos, mode, size):
    random = torch.Generator().manual_seed(size)
    h = torch.randint(1, 33, (48,), generator=random)
    w = torch.randint(1, 37, (48,), generator=random)
    top = (torch.rand(48, generator=random) * (33 - h)).long()
    left = (torch.rand(48, generator=random) * (37 - w)).long()
    flipped = torch.rand(48, generator=random) < 0.5
    boxes = torch.stack([top, left, h, w])
    expected = []
    for photo, box, mirror in zip(photos, boxes.T.tolist(), flipped.tolist(), strict=True):
        piece = tv.resized_crop(photo, *box, [size, size], InterpolationMode(mode))
        expected.append(tv.hflip(piece) if mirror else piece)
    got = pixels.resized_crop(
        stack(photos), *boxes.float(), flipped.float(), size, cubic=mode == "bicubic"
    )
    # Two levels where both passes round the other way; PIL cuts its filter to whole taps.
    assert_close(got, expected, worst=6, beyond=2e-4, mean=0.1)


@pytest.mark.parametrize("sigma", [0, 0.1, 0.4, 1.3, 2, 5])
def test_blur(photos, sigma):
    expected = [photo.filter(ImageFilter.GaussianBlur(sigma)) for photo in photos]
    # PIL rounds after each of six passes.
    assert_close(pixels.blur(stack(photos), same(sigma)), expected, 2, beyond=0.06, mean=0.1)


def test_blur_is_of_each_sample(photos):
    sigma = torch.linspace(0, 3, 48)
    together = pixels.blur(stack(photos), sigma)
    for i in (0, 20, 47):
        alone = pixels.blur(stack(photos[i : i + 1]), sigma[i : i + 1])
        assert (together[i] - alone[0]).abs().max() <= 1  # products of other sizes round otherwise


def test_solarize_and_equalize_are_exact(photos):
    dark = [Image.eval(photo, lambda level: level // 40) for photo in photos]
    for images in (photos, dark, [photo.resize((130, 70)) for photo in photos]):
        x = stack(images)
        assert torch.equal(pixels.solarize(x.clone()), stack(map(ImageOps.solarize, images)))
        assert torch.equal(pixels.equalize(x.clone()), stack(map(ImageOps.equalize, images)))


def test_gray(photos):
    got = pixels.gray(stack(photos)).expand(-1, 3, -1, -1)
    assert_close(got, [tv.to_grayscale(photo, 3) for photo in photos], 1, mean=1e-3)


ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.8])
def test_blends(photos, kind, factor):
    order = torch.tensor([[3, 0, 1, 2]]).expand(48, -1)
    factors = torch.ones(3, 48)
    factors[kind] = factor
    got = pixels.jitter(stack(photos), order, factors, same(0))
    assert_close(got, [ADJUST[kind](photo, factor) for photo in photos], 1, mean=0.01)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0, 0.05, 0.33])
def test_hue(photos, turn):
    x = stack(photos)
    got = pixels.turn_hue(x, same(turn))
    exact = tv.adjust_hue(x / 255, turn) * 255
    assert (got - exact).abs().max() < 0.51
    # PIL rounds hue and saturation to 8 bits.
    assert_close(got, [tv.adjust_hue(photo, turn) for photo in photos], 30, 0.02, 0.25, apart=4)


def test_jitter_follows_each_samples_order(photos):
    order = torch.tensor([[3, 1, 0, 2], [2, 3, 1, 0], [0, 1, 3, 2], [1, 2, 0, 3]])
    factors = torch.tensor([[1.4, 0.7, 1.2, 0.8], [0.6, 1.3, 0.9, 1.4], [1.4, 0.6, 1.1, 1.3]])
    turns = torch.tensor([0.1, -0.1, 0.06, -0.03])
    images = photos[3:7]
    got = pixels.jitter(stack(images), order, factors, turns)
    expected = []
    for i, image in enumerate(images):
        for kind in order[i].tolist():
            if kind == 3:
                image = tv.adjust_hue(image, turns[i].item())
            else:
                image = ADJUST[kind](image, factors[kind, i].item())
        expected.append(image)
    assert_close(got, expected, 20, 0.02, 0.3, apart=4)
    other = pixels.jitter(stack(images), order.sort(1).values, factors, turns)
    missed, by_other = ((y - stack(expected)).abs().mean() for y in (got, other))
    assert missed < by_other / 2  # the order does matter


@pytest.mark.parametrize(
    ("angle", "right", "down", "scale", "shear"),
    [(15, 0, 0, 1, 0), (0, 3, -2, 1, 0), (0, 0, 0, 1.2, 0), (0, 0, 0, 1, 10), (-20, 2, 1, 0.8, 12)],
)
def test_affine(photos, angle, right, down, scale, shear):
    values = torch.tensor([angle, right, down, scale, shear], dtype=torch.float32)
    got = pixels.affine(stack(photos), values[:, None].expand(-1, 48))
    mode = InterpolationMode.BILINEAR
    expected = [
        tv.affine(photo, angle, [right, down], scale, [shear, 0.0], mode) for photo in photos
    ]
    # A pixel on the border of the image may fall on either side of it.
    assert_close(got, expected, 255, beyond=2e-3, mean=0.1)
