"""All loaders draw their views from one distribution, torchvision's on PIL images.

The expected transforms are written out here, not built from a recipe. Pictures are 64 parts of
scikit-learn's two photographs, the same on both sides, which makes the tests below a little
stricter than their level says. Every seed is fixed.
"""

from __future__ import annotations

import itertools
import random
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms as tv

from solo_minent.config import load_recipe
from solo_minent.data import epochs
from solo_minent.data.datasets import load_split
from solo_minent.data.loaders import pretrain_loader

LEVEL = 1e-3  # of a comparison of two samples, shared out over its statistics
BICUBIC, BILINEAR = tv.InterpolationMode.BICUBIC, tv.InterpolationMode.BILINEAR


# What the papers' code does, at 32 px (local crops: 16).


def blur(image):
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def sometimes(prob, transform):
    return tv.RandomApply([transform], prob)


def crop(low, high=1.0, size=32, mode=BICUBIC, **kwargs):
    return tv.RandomResizedCrop(size, (low, high), interpolation=mode, **kwargs)


JITTER, FLIP = sometimes(0.8, tv.ColorJitter(0.4, 0.4, 0.2, 0.1)), tv.RandomHorizontalFlip(0.5)
STRONG, SMALL = tv.ColorJitter(0.8, 0.8, 0.8, 0.2), tv.ColorJitter(0.4, 0.4, 0.4, 0.1)
GRAY, SOLARIZE = tv.RandomGrayscale(0.2), sometimes(0.2, tv.RandomSolarize(128, 1.0))
BLUR, RARE, HALF = sometimes(1.0, blur), sometimes(0.1, blur), sometimes(0.5, blur)


def barlow(low):
    start = [crop(low), FLIP, JITTER, GRAY]
    return [[*start, BLUR], [*start, RARE, SOLARIZE]]


def local(low, high, prob=HALF):
    return [crop(low, high, 16), FLIP, JITTER, GRAY, prob]


# recipe, epoch: the expected views, each with how many of it there are.
EXPECTED = {
    ("cifar10/minent", 0): [([sometimes(0.8, SMALL), tv.RandomGrayscale(0.1), crop(0.2), FLIP], 2)],
    ("imagenet100/minent", 0): [([sometimes(0.8, STRONG), GRAY, crop(0.08), FLIP, HALF], 2)],
    ("imagenet/mec", 0): [
        ([crop(0.2, mode=BILINEAR), JITTER, GRAY, BLUR, FLIP], 1),
        ([crop(0.2, mode=BILINEAR), JITTER, GRAY, RARE, SOLARIZE, FLIP], 1),
    ],
    ("imagenet/corinfomax", 0): [(view, 1) for view in barlow(0.08)],
    ("imagenet/twist_deit_s", 0): [*((view, 1) for view in barlow(0.4)), (local(0.05, 0.4), 6)],
    ("imagenet/twist_r50w2", 200): [*((view, 1) for view in barlow(0.14)), (local(0.05, 0.14), 12)],
}
TILES, WIDE, HIGH = 64, 52, 44
FORMATS = ("image_folder", "dali", "device")
EPOCHS = 16  # in a sample; of photographs half of it


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """64 parts of two photographs, as PNG in two class folders."""
    root = tmp_path_factory.mktemp("photos")
    for name, picture in zip("ab", load_sample_images().images, strict=True):
        (root / "train" / name).mkdir(parents=True)
        for row, column in itertools.product(range(4), range(8)):
            top, left = row * (427 - HIGH) // 3, column * (640 - WIDE) // 7
            part = Image.fromarray(picture[top : top + HIGH, left : left + WIDE])
            part.save(root / "train" / name / f"{row}{column}.png")
    return root


def write_tiles(root, tiles):
    (root / "train" / "a").mkdir(parents=True)
    for number, tile in enumerate(tiles):
        Image.fromarray(tile.astype(np.uint8)).save(root / "train" / "a" / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """Red tells the column of a pixel, green its row."""
    y, x = np.mgrid[:HIGH, :WIDE]
    tile = np.stack([3 * x + 20, 3 * y + 20, 0 * x], axis=-1)
    return write_tiles(tmp_path_factory.mktemp("ramps"), [tile] * TILES)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Colours with noise: every part of an image has the same colour, contrast and sharpness."""
    rng = np.random.default_rng(0)
    colors = rng.permuted(np.tile([90, 130, 170], (TILES, 1)), axis=1)[:, None, None]
    tiles = colors + rng.uniform(-60, 60, (TILES, HIGH, WIDE, 1))
    return write_tiles(tmp_path_factory.mktemp("noise"), tiles)


def make_config(root, recipe, form, *overrides, batch_size=TILES, seed=5):
    """The recipe at 32 px, for pixels in [0, 255]."""
    keys = ("augmentations", "late_augmentations") if "_r50w2" in recipe else ("augmentations",)
    small = [f"{key}.2.crop_size=16" for key in keys if "twist_" in recipe]
    return load_recipe(
        recipe,
        [
            *("data.dataset=custom", f"data.root={root}", f"data.format={form}"),
            *("data.image_size=32", "data.mean=[0, 0, 0]", f"data.std={[1 / 255] * 3}"),
            *("data.num_workers=0", "dali.device=cpu", "accelerator=cpu"),
            *("devices=1", "num_nodes=1", f"optimizer.batch_size={batch_size}", f"seed={seed}"),
            *(*small, *overrides),
        ],
    )


def by_recipe(root, recipe, start, form, *overrides):
    """The recipe's views from epoch `start` on: one tensor (N, 3, S, S) for each kind.

    A kind is what is drawn alike. Image i is of tile i mod 64.
    """
    loader = pretrain_loader(make_config(root, recipe, form, *overrides))
    parts = []
    for epoch in range(start, start + epochs_of(root, recipe)):
        loader.set_epoch(epoch)
        ((indexes, views, _),) = loader
        order = indexes.argsort()
        assert torch.equal(indexes[order], torch.arange(TILES))
        # Whole levels, as PIL's: KS tells 0.99999 from 1, and DALI's fractions from none.
        parts.append([view[order].round() for view in views])
    views = iter([torch.cat(same) for same in zip(*parts, strict=True)])
    kinds = [torch.cat([next(views) for _ in range(n)]) for _, n in EXPECTED[recipe, start]]
    assert next(views, None) is None
    return kinds


def epochs_of(root, recipe):
    """Fewer where an image has many crops, and of photographs."""
    return EPOCHS // (4 if "twist_" in recipe else 1) // (2 if "photos" in root.name else 1)


def by_torchvision(root, recipe, start, kept=object):
    """The same of EXPECTED, or of those of its steps that are a `kept`."""
    random.seed(11)
    images = [image for image, _ in load_split("custom", root, "train")]
    kinds = []
    with epochs.seeded(11):
        for steps, count in EXPECTED[recipe, start]:
            view = tv.Compose([*(s for s in steps if isinstance(s, kept)), tv.PILToTensor()])
            times = count * epochs_of(root, recipe)
            kinds.append(torch.stack([view(image) for _ in range(times) for image in images]))
    return [kind.float() for kind in kinds]


@pytest.fixture(scope="module")
def expected():
    """`expected(colors, root, recipe, start)`: a statistic of torchvision's views."""
    return cache(lambda statistic, *args: [statistic(kind) for kind in by_torchvision(*args)])


# Statistics of a view; an array of bool is compared as a share.


def luma_of(x):
    return (x * torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype)[:, None, None]).sum(1)


def sharpness(x: Tensor) -> dict[str, np.ndarray]:
    """Energy of the Laplacian in that of the image.

    Ten square levels more hide what DALI and PIL do not have in common, in nearly flat views: PIL
    rounds after the blur (1.7 square levels of Laplacian), and its three box blurs leave other
    traces at high frequencies than a sampled Gaussian. Without the ten, MEC's first view by DALI is
    told from PIL's with p = 6e-6 (4e-21 if DALI's fractions are kept).
    """
    y = luma_of(x)
    edges = 4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2]
    energy = (edges - y[:, 1:-1, 2:]).square().mean((1, 2))
    return {"sharpness": ((energy + 10) / (y.var((1, 2)) + 1)).log().numpy()}


def colors(x: Tensor) -> dict[str, np.ndarray]:
    luma, top = luma_of(x), x.amax((1, 2, 3))
    mean, spread = luma.mean((1, 2)), luma.var((1, 2))
    chroma = (x.amax(1) - x.amin(1)).mean((1, 2))
    turn = torch.exp(2j * torch.pi / 3 * torch.arange(3))
    hue = (x.mean((2, 3)) * turn).sum(1)
    # The hue of a tile as it is on average here: views of all tiles become comparable.
    middle = hue.view(-1, TILES).mean(0).repeat(len(x) // TILES)
    found = {
        "mean": (mean + 1).log(),
        "variance": (spread + 1).log(),
        "chroma": chroma / (mean + 1),
        "hue": torch.where(hue.abs() > 2, (hue / middle).angle(), 0.0),
        "gray": chroma < 0.5,
        "solarized": (top >= 112) & (top < 128),
    }
    return {name: values.numpy() for name, values in found.items()} | sharpness(x)


def histograms(x: Tensor) -> dict[str, np.ndarray]:
    """Share of the pixels below 64, 128 and 192 in each channel."""
    shares = {low: (x < low).float().mean((2, 3)).numpy() for low in (64, 128, 192)}
    return {f"{rgb} {low}": shares[low][:, c] for c, rgb in enumerate("rgb") for low in shares}


def places(x: Tensor) -> dict[str, np.ndarray]:
    """Of views of the ramps: which part of the image they show, and whether it is mirrored."""
    size = x.shape[-1]
    # What lies near an edge of the part was resampled from fewer pixels.
    middle = torch.arange(size // 4, size - size // 4)
    at = middle + 0.5 - size / 2
    across = x[:, 0].double().mean(1)[:, middle], x[:, 1].double().mean(2)[:, middle]
    (left, width), (top, height) = (
        ((line.mean(1) - 20) / 3, (line * at).sum(1) / at.square().sum() * size / 3)
        for line in across
    )
    found = {
        "area": width.abs() * height / (WIDE * HIGH),
        "aspect": (width.abs() / height).log(),
        "x": left,
        "y": top,
        "flipped": width < 0,
    }
    return {name: values.numpy() for name, values in found.items()}


def difference(found, wanted):
    """(name, p-value times the number of tests) of what differs most."""
    values = {}
    for name, a in found.items():
        b = wanted[name]
        if a.dtype == bool:
            table = [[s.sum(), len(s) - s.sum()] for s in (a, b)]
            values[name] = stats.fisher_exact(table).pvalue
            continue
        # What is left when each tile's own level is taken away, on both sides alike; of a few
        # views the level would follow each of them.
        if len(a) >= 8 * TILES:
            level = np.median(np.concatenate([a, b]).reshape(-1, TILES), axis=0)
            a, b = (s - np.tile(level, len(s) // TILES) for s in (a, b))
        values[name] = stats.ks_2samp(a, b).pvalue
        values[f"spread of {name}"] = stats.ks_2samp(abs(a), abs(b)).pvalue
    worst = min(values, key=values.get)
    return worst, values[worst] * len(values)


def assert_same(found, wanted):
    name, p = difference(found, wanted)
    assert p > LEVEL, f"{name}: p = {p:.2g}"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("recipe", "start"), EXPECTED)
def test_colors_are_torchvisions(photos, expected, recipe, start, form):
    kinds = by_recipe(photos, recipe, start, form)
    for statistic in (colors, histograms):
        for kind, wanted in zip(kinds, expected(statistic, photos, recipe, start), strict=True):
            assert_same(statistic(kind), wanted)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("recipe", ["imagenet100/minent", "imagenet/mec"])
def test_colors_and_blur_are_torchvisions_whatever_the_crop(noise, expected, recipe, form):
    kinds = by_recipe(noise, recipe, 0, form)
    for kind, wanted in zip(kinds, expected(colors, noise, recipe, 0), strict=True):
        assert_same(colors(kind), wanted)


PLACING = (tv.RandomResizedCrop, tv.RandomHorizontalFlip)


def without_colors(recipe, start):
    key = "augmentations" if start == 0 else "late_augmentations"
    names = ("color_jitter", "grayscale", "gaussian_blur", "solarization")
    for number, entry in enumerate(getattr(load_recipe(recipe), key)):
        yield from (f"{key}.{number}.{name}.prob=0" for name in names if name in entry)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("recipe", "start"), EXPECTED)
def test_crops_and_flips_are_torchvisions(ramps, recipe, start, form):
    kinds = by_recipe(ramps, recipe, start, form, *without_colors(recipe, start))
    wanted = by_torchvision(ramps, recipe, start, PLACING)
    for view, other in zip(kinds, wanted, strict=True):
        found = places(view)
        assert_same(found, places(other))
        # Draws have nothing to do with each other, in a view and from one view to the next.
        for name, values in found.items():
            pairs = [(values[:-1], values[1:]), np.split(values, 2), (values, found["flipped"])]
            for a, b in pairs[: 2 + (name != "flipped")]:
                assert stats.spearmanr(a, b).pvalue > LEVEL / 10, name


# A recipe that is wrong in one place: the same comparison of the same view must say so.
WRONG_PHOTOS = [
    ("imagenet100/minent", 0, "augmentations.0.color_jitter.hue=0.1"),
    ("imagenet/mec", 0, "augmentations.0.gaussian_blur.prob=0"),
    ("imagenet/corinfomax", 0, "augmentations.0.color_jitter.hue=0"),
]
WRONG_NOISE = [
    ("imagenet100/minent", 0, "augmentations.0.grayscale.prob=0.1"),
    ("imagenet100/minent", 0, "augmentations.0.gaussian_blur.prob=0.3"),
    ("imagenet100/minent", 0, "augmentations.0.color_jitter.prob=0.6"),
    ("cifar10/minent", 0, "augmentations.0.color_jitter.saturation=0.2"),
    ("cifar10/minent", 0, "augmentations.0.color_jitter.contrast=0.2"),
    ("imagenet/mec", 0, "augmentations.0.color_jitter.brightness=0.3"),
    ("imagenet/mec", 0, "augmentations.0.gaussian_blur.prob=0.8"),
    ("imagenet/mec", 0, "augmentations.0.gaussian_blur.radius=[0.1, 1.5]"),
    ("imagenet/mec", 1, "augmentations.1.gaussian_blur.prob=0.3"),
    ("imagenet/mec", 1, "augmentations.1.solarization.prob=0.1"),
]
WRONG_PLACES = [
    ("imagenet/mec", 0, "augmentations.0.rrc.crop_min_scale=0.08"),
    ("imagenet/mec", 0, "augmentations.0.horizontal_flip.prob=0.4"),
    ("imagenet/corinfomax", 0, "augmentations.0.rrc.crop_max_scale=0.7"),
    ("imagenet/twist_deit_s", 2, "augmentations.2.rrc.crop_max_scale=0.3"),
]


def assert_other(found, wanted):
    name, p = difference(found, wanted)
    assert p < LEVEL, f"{name}: p = {p:.2g}"


@pytest.mark.parametrize(("recipe", "kind", "wrong"), WRONG_PHOTOS)
def test_wrong_photographs_are_found(photos, expected, recipe, kind, wrong):
    found = by_recipe(photos, recipe, 0, "image_folder", wrong)[kind]
    assert_other(colors(found), expected(colors, photos, recipe, 0)[kind])


@pytest.mark.parametrize(("recipe", "kind", "wrong"), WRONG_NOISE)
def test_wrong_colors_and_blur_are_found(noise, expected, recipe, kind, wrong):
    found = by_recipe(noise, recipe, 0, "image_folder", wrong)[kind]
    assert_other(colors(found), expected(colors, noise, recipe, 0)[kind])


@pytest.mark.parametrize(("recipe", "kind", "wrong"), WRONG_PLACES)
def test_wrong_crops_and_flips_are_found(ramps, recipe, kind, wrong):
    kinds = by_recipe(ramps, recipe, 0, "image_folder", *without_colors(recipe, 0), wrong)
    wanted = by_torchvision(ramps, recipe, 0, PLACING)
    assert_other(places(kinds[kind]), places(wanted[kind]))
