"""Views of a batch: each sample's own draws, rates, groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision import transforms as tv

from solo_minent.data import batched
from solo_minent.data import pixels as pixel_operations
from solo_minent.data.augmentations import (
    Affine,
    ColorJitter,
    Equalization,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    Solarization,
    View,
)
from solo_minent.data.batched import BatchedViews, crop_boxes
from solo_minent.data.transforms import multi_view

PLAIN = ((0.0,) * 3, (1 / 255,) * 3)  # views in [0, 255]
CROP = RandomResizedCrop(16, (0.2, 1.0), "bicubic")
JITTER = ColorJitter(0.8, 0.4, 0.4, 0.2, 0.1)


@pytest.fixture
def batch():
    """64 copies of an image of 40 x 40 random pixels."""
    pixels = torch.randint(0, 256, (3, 40, 40), generator=torch.Generator().manual_seed(0))
    return pixels.to(torch.uint8).repeat(64, 1, 1, 1)


def views(batch, *views, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return BatchedViews(views, *PLAIN)(batch, generator)


def distinct(images):
    return len({image.numpy().tobytes() for image in images})


@pytest.mark.parametrize(
    ("operation", "least"),
    [
        (CROP, 60),
        (Affine((-15, 15), (0.1, 0.1), (0.9, 1.1), (-5, 5)), 60),
        (ColorJitter(1.0, 0.4, 0, 0, 0), 60),
        (ColorJitter(1.0, 0, 0.4, 0, 0), 60),
        (ColorJitter(1.0, 0, 0, 0.4, 0), 60),
        (ColorJitter(1.0, 0, 0, 0, 0.1), 60),
        (GaussianBlur(1.0, (0.1, 2.0)), 60),
        (HorizontalFlip(0.5), 2),
        (Grayscale(0.5), 2),
        (Solarization(0.5), 2),
        (Equalization(0.5), 2),
        (Resize(20, "bilinear"), 1),
    ],
    ids=str,
)
def test_equal_images_get_their_own_views(batch, operation, least):
    before = batch.clone()
    first, second = views(batch, View(40, 2, (operation,)))
    assert torch.equal(batch, before)
    assert distinct(first) >= least
    if least > 2:
        assert distinct(torch.cat([first, second])) > distinct(first)
    assert torch.equal(views(batch, View(40, 2, (operation,)))[1], second)
    if least > 1:
        assert not torch.equal(views(batch, View(40, 2, (operation,)), seed=1)[0], first)


def test_orders_of_the_jitter_are_the_samples_own(batch, monkeypatch):
    orders = []
    monkeypatch.setattr(batched, "jitter", lambda x, order, *rest: orders.append(order) or x)
    views(batch, View(40, 8, (ColorJitter(1.0, 0.4, 0.4, 0.4, 0.1),)))
    assert len(orders) == 1
    assert len({tuple(order) for order in orders[0].tolist()}) == 24  # all, among 512 samples


@pytest.mark.parametrize(
    "kind", [HorizontalFlip, Grayscale, Solarization, Equalization, ColorJitter, GaussianBlur]
)
@pytest.mark.parametrize("prob", [0.1, 0.8])
def test_rates(batch, kind, prob):
    rest = {ColorJitter: (0.4, 0.4, 0.4, 0.1), GaussianBlur: ((1.0, 2.0),)}.get(kind, ())
    small = batch[:1, :, :20, :20].repeat(2000, 1, 1, 1)
    (view,) = views(small, View(20, 1, (kind(prob, *rest),)))
    changed = (view - small).abs().amax((1, 2, 3)) > 0.5
    assert abs(changed.float().mean() - prob) < 5 * math.sqrt(prob * (1 - prob) / 2000)


def test_folded_flip_is_the_flip_and_has_its_rate(batch):
    crop, n = RandomResizedCrop(16, (1.0, 1.0), "bicubic", (1.0, 1.0)), 2000
    small = batch[:1, :, :16, :16].repeat(n, 1, 1, 1)
    (view,) = views(small, View(16, 1, (crop, HorizontalFlip(0.3))))
    mirrored = (view.flip(-1) - small).abs().amax((1, 2, 3)) < 0.5
    straight = (view - small).abs().amax((1, 2, 3)) < 0.5
    assert (mirrored ^ straight).all()
    assert abs(mirrored.float().mean() - 0.3) < 5 * math.sqrt(0.21 / n)


def test_asymmetric_views_go_together_with_their_own_rates(batch):
    first = View(16, 1, (CROP, HorizontalFlip(0.5), JITTER, GaussianBlur(1.0, (0.1, 2.0))))
    second = View(
        16, 1, (CROP, HorizontalFlip(0.2), JITTER, GaussianBlur(0.1, (0.1, 2.0)), Solarization(0.2))
    )
    ((slots, steps),) = BatchedViews([first, second], *PLAIN).groups
    rates = {
        type(operation).__name__: dict(zip(slots, probs, strict=True)) for operation, probs in steps
    }
    assert rates == {
        "RandomResizedCrop": {0: 0.5, 1: 0.2},
        "ColorJitter": {0: 0.8, 1: 0.8},
        "GaussianBlur": {0: 1.0, 1: 0.1},
        "Solarization": {0: 0.0, 1: 0.2},
    }
    only = (Solarization(0.0), Solarization(1.0))
    a, b = views(batch, *(View(40, 1, (operation,)) for operation in only))
    assert torch.equal(a, batch.float())
    assert torch.equal(b, torch.where(batch >= 128, 255 - batch, batch).float())


@pytest.mark.parametrize(
    "other",
    [
        (RandomResizedCrop(16, (0.1, 1.0), "bicubic"), JITTER),
        (JITTER, CROP),
        (CROP, ColorJitter(0.8, 0.4, 0.4, 0.3, 0.1)),
        (JITTER,),
    ],
)
def test_views_of_other_operations_stay_apart(other):
    groups = BatchedViews([View(16, 1, (CROP, JITTER)), View(16, 1, other)], *PLAIN).groups
    assert sorted(slots for slots, _ in groups) == [[0], [1]]


def test_multi_crop_comes_in_the_order_of_the_views(batch):
    small = RandomResizedCrop(8, (0.05, 0.3), "bicubic")
    out = views(batch, View(16, 2, (CROP, JITTER)), View(8, 6, (small, JITTER, Grayscale(0.2))))
    assert [tuple(view.shape) for view in out] == [(64, 3, 16, 16)] * 2 + [(64, 3, 8, 8)] * 6
    assert all(view.is_contiguous() and view.dtype == torch.float32 for view in out)
    assert distinct(view[0] for view in out[2:]) == 6


def test_normalisation_and_float_images(photo):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    batch = torch.from_numpy(np.array(photo)).permute(2, 0, 1).repeat(6, 1, 1, 1)
    kept = [View(40, 1, (Resize(40, "bilinear"),))]
    expected = multi_view(kept, mean, std)(photo)[0]
    for images in (batch, batch / 255):
        torch.testing.assert_close(BatchedViews(kept, mean, std)(images)[0][5], expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), [((40, 40), 16), ((40, 40), 50), ((30, 40), 17)])
def test_resize_is_pils(photo, interpolation, shape, size):
    piece = photo.crop((0, 0, shape[1], shape[0]))
    kept = [View(size, 1, (Resize(size, interpolation),))]
    pixels = torch.from_numpy(np.array(piece)).permute(2, 0, 1)[None]
    away = (BatchedViews(kept, *PLAIN)(pixels)[0][0] - multi_view(kept, *PLAIN)(piece)[0]).abs()
    assert away.max() <= 2
    assert away.mean() < 0.5


@pytest.mark.parametrize("shape", [(32, 32), (20, 60), (60, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crop_boxes_are_drawn_as_torchvisions(shape, scale):
    operation, n = RandomResizedCrop(16, scale, "bicubic"), 4000
    image = Image.new("RGB", shape[::-1])
    torch.manual_seed(0)
    get = tv.RandomResizedCrop.get_params
    theirs = torch.tensor([get(image, list(scale), list(operation.ratio)) for _ in range(n)])
    ours = crop_boxes(operation, shape, n, torch.Generator().manual_seed(1)).T
    assert ours.dtype == torch.int64
    assert (ours >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(shape)).all()
    for a, b in zip(ours.double().T, theirs.double().T, strict=True):
        error = (a.var() / n + b.var() / n).sqrt()
        assert (a.mean() - b.mean()).abs() <= 5 * error + 1e-9
        assert (a.std() - b.std()).abs() <= 0.05 * b.std() + 1e-9
    area, area_theirs = (boxes[:, 2] * boxes[:, 3] / math.prod(shape) for boxes in (ours, theirs))
    quantiles = torch.linspace(0, 1, 11, dtype=torch.float64)
    ours_at, theirs_at = (a.double().quantile(quantiles) for a in (area, area_theirs))
    torch.testing.assert_close(ours_at, theirs_at, atol=0.04, rtol=0)


def test_global_generator_is_untouched_by_an_explicit_one(batch):
    everything = (
        *(CROP, HorizontalFlip(0.5), JITTER, Grayscale(0.2), GaussianBlur(0.5, (0.1, 2.0))),
        *(Solarization(0.2), Equalization(0.2), Affine((-9, 9), (0.1, 0.1), (1, 1), (0, 0))),
    )
    state = torch.get_rng_state()
    first = views(batch, View(16, 2, everything))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert all(map(torch.equal, views(batch, View(16, 2, everything)), first))


def features(view):
    """(N, 10) of views in [0, 255]: levels, contrast, colour, sharpness, dark and bright shares."""
    gray = view.mean(1)
    across, down = gray.diff(dim=2), gray.diff(dim=1)
    columns = [
        *view.mean((2, 3)).T,
        *view.std((2, 3)).T,
        (view.amax(1) - view.amin(1)).mean((1, 2)),
        across.abs().mean((1, 2)) + down.abs().mean((1, 2)),
        (gray < 64).float().mean((1, 2)),
        (gray >= 192).float().mean((1, 2)),
    ]
    return torch.stack(columns, dim=1).numpy()


def least_p(a, b):
    """Of Kolmogorov-Smirnov tests, one a feature."""
    return min(ks_2samp(x, y).pvalue for x, y in zip(a.T, b.T, strict=True))


CIFAR_CROP = RandomResizedCrop(32, (0.08, 1.0), "bicubic")
FLIP, BLUR = HorizontalFlip(0.5), GaussianBlur(0.5, (0.1, 2.0))
SHIFT = Affine((-15, 15), (0.1, 0.1), (0.9, 1.1), (-5, 5))


@pytest.mark.parametrize(
    "operations",
    [
        (JITTER, Grayscale(0.1), RandomResizedCrop(32, (0.2, 1.0), "bicubic"), FLIP),
        (CIFAR_CROP, FLIP, JITTER, Grayscale(0.2), BLUR, Solarization(0.2)),
        (Resize(32, "bilinear"), SHIFT, JITTER, Equalization(0.3)),
    ],
    ids=["minent", "blur", "affine"],
)
def test_distribution_is_that_of_pil(operations):
    photos = [Image.fromarray(whole).resize((120, 80)) for whole in load_sample_images().images]
    boxes = itertools.product(photos, range(0, 120, 40), range(0, 80, 40))
    pieces = [photo.crop((x, y, x + 40, y + 40)) for photo, x, y in boxes] * 100
    view = View(32, 1, operations)
    transform = multi_view([view], *PLAIN)
    torch.manual_seed(0)
    by_pil = features(torch.stack([transform(piece)[0] for piece in pieces]))
    pixels = torch.from_numpy(np.stack([np.array(piece) for piece in pieces])).permute(0, 3, 1, 2)
    assert least_p(features(views(pixels, view)[0]), by_pil) > 1e-4
    # The test sees it when one operation is missing.
    for missing in range(len(operations)):
        if not isinstance(operations[missing], (HorizontalFlip, Resize, RandomResizedCrop)):
            rest = operations[:missing] + operations[missing + 1 :]
            assert least_p(features(views(pixels, View(32, 1, rest))[0]), by_pil) < 1e-4


def test_nothing_asks_the_device_for_a_value(batch, monkeypatch):
    # Tensors of the meta device have no values: whatever reads one, or mixes devices, raises.
    for module in (batched, pixel_operations):
        monkeypatch.setattr(module, "send", lambda values, like: values.to(like.device))
    every = (CROP, FLIP, SHIFT, JITTER, Grayscale(0.2), BLUR, Solarization(0.2), Equalization(0.2))
    small = (Resize(8, "bicubic"), FLIP, JITTER)
    transform = BatchedViews([View(16, 2, every), View(8, 3, small)], *PLAIN)
    out = transform(batch.to("meta"), torch.Generator().manual_seed(0))
    assert [(view.device.type, view.shape[-1]) for view in out] == [("meta", 16)] * 2 + [
        ("meta", 8)
    ] * 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        batch.to("meta").float().max().item()
