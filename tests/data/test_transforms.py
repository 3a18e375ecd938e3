"""Augmentations: which operations run, in which order, with which distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as tv

from solo_minent.data.augmentations import crop_counts, parse_views
from solo_minent.data.datasets import load_split
from solo_minent.data.transforms import (
    NORMALIZATION,
    GaussianBlur,
    ToNormalizedTensor,
    eval_transform,
    multi_view,
    view_transform,
)
from solo_minent.errors import UserError

PLAIN = ((0.0,) * 3, (1.0,) * 3)
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


def view(aug, image_size=40, constants=PLAIN):
    return view_transform(parse_views([aug], image_size)[0], *constants)


def steps(aug):
    names = []
    for step in view(aug).transforms:
        inner = getattr(step, "transforms", None)
        names.append(type(inner[0] if isinstance(step, tv.RandomApply) else step).__name__)
    return names


def pixels(tensor):
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_minent_order_is_jitter_gray_crop_flip_and_equals_torchvision(photo):
    assert steps(MINENT) == [
        "ColorJitter",
        "RandomGrayscale",
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ToNormalizedTensor",
    ]
    mean, std = NORMALIZATION["cifar10"]
    bicubic = tv.InterpolationMode.BICUBIC
    reference = tv.Compose(
        [
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            tv.RandomGrayscale(0.1),
            tv.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=bicubic),
            tv.RandomHorizontalFlip(0.5),
            tv.ToTensor(),
            tv.Normalize(mean, std),
        ]
    )
    ours = view(MINENT, 32, (mean, std))
    for seed in range(20):
        torch.manual_seed(seed)
        expected = reference(photo)
        torch.manual_seed(seed)
        assert torch.equal(ours(photo), expected)


def test_order_is_executed_as_written(photo):
    # Solarising before or after an equalisation gives different images.
    ops = {name: {"enabled": True, "prob": 1.0} for name in ("solarization", "equalization")}
    first = view({**ops, "order": ["solarization", "equalization"]})(photo)
    second = view({**ops, "order": ["equalization", "solarization"]})(photo)
    assert np.array_equal(pixels(first), np.asarray(ImageOps.equalize(ImageOps.solarize(photo))))
    assert np.array_equal(pixels(second), np.asarray(ImageOps.solarize(ImageOps.equalize(photo))))
    assert not torch.equal(first, second)


def test_default_order_puts_affine_first():
    aug = {
        name: {"enabled": True, "prob": 0.5}
        for name in (
            "equalization",
            "solarization",
            "gaussian_blur",
            "grayscale",
            "color_jitter",
            "horizontal_flip",
        )
    }
    aug |= {"rrc": {"enabled": True}, "affine": {"enabled": True, "degrees": 5}}
    assert steps(aug) == [
        "RandomAffine",
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ColorJitter",
        "RandomGrayscale",
        "GaussianBlur",
        "Solarize",
        "Equalize",
        "ToNormalizedTensor",
    ]


def test_absent_disabled_and_zero_probability_do_nothing(photo):
    for aug in (
        {},
        {"horizontal_flip": {"enabled": False, "prob": 1.0}},
        {"solarization": {"enabled": True, "prob": 0.0}, "order": ["solarization"]},
        {"solarization": {"prob": 0.0}, "rrc": {"enabled": False}},
        {"grayscale": None},
    ):
        assert np.array_equal(pixels(view(aug)(photo)), np.asarray(photo))


def test_solo_learn_entries_without_enabled_follow_prob(photo):
    out = view({"horizontal_flip": {"prob": 1.0}, "grayscale": {"prob": 0.0}})(photo)
    assert np.array_equal(pixels(out), np.asarray(ImageOps.mirror(photo)))


@pytest.mark.parametrize("prob", [0.2, 0.8])
@pytest.mark.parametrize("name", ["horizontal_flip", "grayscale", "solarization", "equalization"])
def test_probability(photo, name, prob):
    torch.manual_seed(0)
    transform = view({name: {"enabled": True, "prob": prob}})
    still = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    share = np.mean([not torch.equal(transform(photo), still) for _ in range(600)])
    assert abs(share - prob) < 4 * np.sqrt(prob * (1 - prob) / 600)


def test_blur_is_pils_with_a_uniform_radius(photo, monkeypatch):
    radii = []
    real = ImageFilter.GaussianBlur
    monkeypatch.setattr(
        ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or real(radius)
    )
    torch.manual_seed(0)
    blur = GaussianBlur(0.1, 2.0)
    out = [blur(photo) for _ in range(500)]
    assert np.array_equal(np.asarray(out[0]), np.asarray(photo.filter(real(radii[0]))))
    assert 0.1 <= min(radii) < 0.15
    assert 1.95 < max(radii) <= 2.0
    assert abs(np.mean(radii) - 1.05) < 0.1


def test_crop_scale_is_the_share_of_the_area(photo):
    # The x ramp of the photo tells how wide a piece was cut.
    aug = {"rrc": {"enabled": True, "crop_min_scale": 0.25, "crop_max_scale": 0.25}}
    torch.manual_seed(0)
    areas = []
    for _ in range(100):
        out = view(aug)(photo) * 255 / 6
        width = (out[0, :, -1].mean() - out[0, :, 0].mean()).item() * 40 / 39
        height = (out[1, -1].mean() - out[1, 0].mean()).item() * 40 / 39
        areas.append(width * height / 1600)
    assert abs(np.median(areas) - 0.25) < 0.03


def test_interpolation_and_sizes(photo):
    crop = {"enabled": True, "crop_min_scale": 1.0}
    outs = {}
    for mode in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        outs[mode] = view({"rrc": {**crop, "interpolation": mode}, "crop_size": 64})(photo)
        assert outs[mode].shape == (3, 64, 64)
    torch.manual_seed(0)
    default = view({"rrc": crop, "crop_size": 64})(photo)
    assert torch.equal(default, outs["bicubic"])
    assert not torch.equal(default, outs["bilinear"])
    assert view({}, image_size=24)(Image.new("RGB", (50, 30))).shape == (3, 24, 24)


def test_affine_moves_within_its_limits():
    image = Image.new("RGB", (41, 41))
    image.putpixel((20, 20), (255, 255, 255))
    aug = {"affine": {"enabled": True, "degrees": 0, "translate": [0.1, 0.0]}}
    torch.manual_seed(0)
    transform = view(aug, 41)
    columns, rows = set(), set()
    for _ in range(200):
        _, y, x = torch.nonzero(transform(image) > 0.5)[0].tolist()
        columns.add(x)
        rows.add(y)
    assert rows == {20}
    assert columns == set(range(16, 25))


def test_normalised_tensor_equals_torchvision_to_the_bit(photo):
    mean, std = NORMALIZATION["imagenet"]
    expected = tv.Compose([tv.ToTensor(), tv.Normalize(mean, std)])(photo)
    out = ToNormalizedTensor(mean, std)(photo)
    assert torch.equal(out, expected)
    assert out.is_contiguous()


def test_digits_constants_are_those_of_the_train_split():
    images = load_split("digits", None, "train").images / 255
    mean, std = NORMALIZATION["digits"]
    assert mean == (round(images.mean(), 4),) * 3
    assert std == (round(images.std(), 4),) * 3


def test_normalisation_constants_of_the_recipes():
    assert NORMALIZATION["cifar10"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert NORMALIZATION["cifar100"] == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2762))
    assert NORMALIZATION["stl10"] == ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27))
    assert NORMALIZATION["tiny_imagenet"] == ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282))
    for name in ("imagenet", "imagenet100", "custom"):
        assert NORMALIZATION[name] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_large_crops_come_first_and_are_counted(photo):
    augs = [
        {"crop_size": 32, "num_crops": 1},
        {"crop_size": 16, "num_crops": 3},
        {"crop_size": 32, "num_crops": 2, "solarization": {"enabled": True, "prob": 1.0}},
    ]
    parsed = parse_views(augs, 32)
    assert crop_counts(parsed) == (3, 3)
    views = multi_view(parsed, *PLAIN)(photo)
    assert [v.shape[-1] for v in views] == [32, 32, 32, 16, 16, 16]
    assert torch.equal(views[1], views[2])
    assert not torch.equal(views[0], views[1])
    assert crop_counts(parse_views([{}, {"crop_size": 32}], 32)) == (2, 0)


def test_eval_transforms(photo):
    digit = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8))
    out = eval_transform("digits", 16, *PLAIN)(digit)
    assert np.array_equal(pixels(out), np.asarray(digit.resize((16, 16), Image.BILINEAR)))
    small = photo.resize((32, 32))
    out = eval_transform("cifar10", 32, *PLAIN)(small)
    assert np.array_equal(pixels(out), np.asarray(small))
    assert eval_transform("cifar10", 48, *PLAIN)(small).shape == (3, 48, 48)
    wide = Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 400, 3), dtype=np.uint8))
    out = eval_transform("custom", 224, *PLAIN)(wide)
    resized = wide.resize((341, 256), Image.BICUBIC)
    assert np.array_equal(pixels(out), np.asarray(resized.crop((58, 16, 282, 240))))


def test_bad_normalisation():
    with pytest.raises(UserError, match="normalisation"):
        view({}, 32, ((0.5,), (0.5,)))
