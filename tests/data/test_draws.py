"""The numbers of a view are those that torchvision's own transforms draw."""

from __future__ import annotations

import pytest
import torch
from PIL import ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from solo_minent.data import augmentations as ops
from solo_minent.data.augmentations import parse_views
from solo_minent.data.draws import draw
from solo_minent.data.transforms import view_transform

ALL = {
    "affine": {"degrees": 15, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10},
    "rrc": {"crop_min_scale": 0.2},
    "horizontal_flip": {"prob": 0.5},
    "color_jitter": {
        "prob": 0.7,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.3,
        "hue": 0.2,
    },
    "grayscale": {"prob": 0.3},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.4},
    "equalization": {"prob": 0.4},
}
JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def carried_out(image, view, draws):
    """The view by torchvision's functions and the numbers alone."""
    for operation, drawn in zip(view.operations, draws, strict=True):
        match operation:
            case ops.Resize(size):
                image = F.center_crop(F.resize(image, size), size)
            case ops.RandomResizedCrop(size):
                box = (drawn.top, drawn.left, drawn.height, drawn.width)
                image = F.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC)
            case ops.Affine():
                image = F.affine(image, *drawn, InterpolationMode.BILINEAR)
            case ops.ColorJitter() if drawn is not None:
                factors = (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue)
                for step in drawn.order:
                    if factors[step] != (1, 1, 1, 0)[step]:  # even a hue of 0 rounds the pixels
                        image = JITTER[step](image, factors[step])
            case ops.GaussianBlur() if drawn is not None:
                image = image.filter(ImageFilter.GaussianBlur(drawn))
            case ops.HorizontalFlip() if drawn:
                image = F.hflip(image)
            case ops.Grayscale() if drawn:
                image = F.rgb_to_grayscale(image, 3)
            case ops.Solarization() if drawn:
                image = ImageOps.solarize(image)
            case ops.Equalization() if drawn:
                image = ImageOps.equalize(image)
    return F.pil_to_tensor(image)


@pytest.mark.parametrize(
    "entry",
    [
        ALL,
        {**ALL, "rrc": {"enabled": False}},
        {"order": ["color_jitter", "grayscale", "rrc", "horizontal_flip"]}
        | {key: ALL[key] for key in ("rrc", "horizontal_flip", "color_jitter", "grayscale")},
        {"color_jitter": {"prob": 1, "contrast": 0.5}, "rrc": {"crop_min_scale": 0.9}},
    ],
)
def test_the_numbers_make_the_view_of_torchvision(photo, entry):
    image = photo.resize((50, 40))
    (view,) = parse_views([entry], 24)
    transform = view_transform(view, [0.0] * 3, [1.0] * 3)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        expected = transform(image)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        draws = draw(view, image.height, image.width)
        assert torch.equal(torch.get_rng_state(), state)  # what follows draws the same, too
        assert torch.equal(carried_out(image, view, draws), expected.mul(255).round().byte())
        seen |= {
            (type(o), d is not None and d is not False)
            for o, d in zip(view.operations, draws, strict=True)
        }
    random = {type(o) for o in view.operations if 0 < getattr(o, "prob", 0) < 1}
    assert all((kind, acts) in seen for kind in random for acts in (True, False))


def test_a_probability_of_one_always_acts():
    entry = {key: {**ALL[key], "prob": 1.0} for key in ALL if key not in ("affine", "rrc")}
    (view,) = parse_views([entry], 24)
    for seed in range(50):
        torch.manual_seed(seed)
        assert all(d not in (None, False) for d in draw(view, 30, 30)[1:])
