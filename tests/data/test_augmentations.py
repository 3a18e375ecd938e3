"""The schema of augmentations: what an entry becomes, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from solo_minent.config import load_recipe
from solo_minent.data.augmentations import (
    Affine,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    View,
    parse_views,
    views_at,
)
from solo_minent.errors import UserError

MINENT = {
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {
        "enabled": True,
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
    "grayscale": {"enabled": True, "prob": 0.1},
    "horizontal_flip": {"enabled": True, "prob": 0.5},
    "gaussian_blur": {"enabled": False, "prob": 0.5},
    "order": ["color_jitter", "grayscale", "rrc", "horizontal_flip"],
    "crop_size": 32,
    "num_crops": 2,
}


def test_an_entry_becomes_operations_in_its_order():
    jitter = ColorJitter(0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crop = RandomResizedCrop(32, (0.2, 1.0), "bicubic", ratio=(3 / 4, 4 / 3))
    operations = (jitter, Grayscale(0.1), crop, HorizontalFlip(0.5))
    assert parse_views([MINENT], 40) == [View(size=32, count=2, operations=operations)]


def test_defaults_of_an_entry():
    (view,) = parse_views([{"gaussian_blur": {"prob": 0.5}, "affine": {"degrees": 5}}], 16)
    affine = Affine((-5, 5), (0, 0), (1, 1), (0, 0))
    assert view == View(16, 1, (Resize(16, "bilinear"), affine, GaussianBlur(0.5, (0.1, 2.0))))


def test_late_augmentations_hold_from_their_epoch_on():
    late = {**MINENT, "rrc": {"enabled": True, "crop_min_scale": 0.05, "crop_max_scale": 0.4}}
    config = load_recipe("cifar10/minent")
    config = replace(config, late_epoch=3, late_augmentations=[late])
    scales = [views_at(config, epoch)[0].operations[2].scale for epoch in (0, 2, 3, 9)]
    assert scales == [(0.2, 1.0), (0.2, 1.0), (0.05, 0.4), (0.05, 0.4)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cutout": {"enabled": True}}, "unknown augmentation: cutout"),
        ({"rrc": {"enabled": True, "scale": 0.2}}, "unknown key of rrc: scale"),
        ({"grayscale": {"enabled": True, "prob": 1.2}}, "grayscale.prob is out of range: 1.2"),
        ({"grayscale": {"enabled": True, "prob": -0.1}}, "grayscale.prob"),
        ({"grayscale": {"enabled": True}}, "without a probability"),
        ({"grayscale": {"enabled": "yes", "prob": 1.0}}, "grayscale.enabled"),
        ({"grayscale": 0.2}, "grayscale must be a mapping"),
        ({"rrc": {"enabled": True, "crop_min_scale": 0.0}}, "crop scale out of range"),
        ({"rrc": {"enabled": True, "crop_min_scale": 0.9, "crop_max_scale": 0.5}}, "crop scale"),
        ({"rrc": {"enabled": True, "crop_max_scale": 1.5}}, "crop_max_scale is out of range"),
        ({"rrc": {"enabled": True, "interpolation": "nearest"}}, "unknown interpolation"),
        ({"order": ["rrc", "horizontal_flip"]}, "order does not name"),
        ({"order": [*MINENT["order"], "gaussian_blur"]}, "order does not name"),
        ({"order": [*MINENT["order"], "solarization"]}, "order does not name"),
        ({"order": [*MINENT["order"], "twirl"]}, "order does not name"),
        ({"order": [*MINENT["order"], "rrc"]}, "order does not name"),
        ({"order": "rrc"}, "order must be a list"),
        ({"color_jitter": {"enabled": True, "prob": 1.0, "hue": 0.6}}, "color_jitter.hue"),
        ({"color_jitter": {"enabled": True, "prob": 1.0, "contrast": "big"}}, "contrast"),
        ({"crop_size": 0}, "crop_size must be"),
        ({"num_crops": 0}, "num_crops must be"),
    ],
)
def test_bad_entries_are_one_clear_error(change, words):
    with pytest.raises(UserError, match=words):
        parse_views([{**copy.deepcopy(MINENT), **change}], 32)


@pytest.mark.parametrize(
    ("op", "section", "words"),
    [
        ("gaussian_blur", {"prob": 0.5, "radius": [2.0, 0.1]}, "gaussian_blur.radius must rise"),
        ("gaussian_blur", {"prob": 0.5, "radius": 2.0}, "must be two numbers"),
        ("affine", {"translate": [0.1, 1.5]}, "affine.translate"),
        ("affine", {"scale": [0.0, 1.0]}, "affine.scale"),
        ("affine", {"degrees": -5}, "affine.degrees"),
    ],
)
def test_bad_ranges(op, section, words):
    with pytest.raises(UserError, match=words):
        parse_views([{op: {"enabled": True, **section}}], 32)


@pytest.mark.parametrize("augmentations", [[], None, "rrc", [3]])
def test_augmentations_must_be_a_list_of_entries(augmentations):
    with pytest.raises(UserError, match="augmentation"):
        parse_views(augmentations, 32)
