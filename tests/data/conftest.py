from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from solo_minent.schema import DataConfig, OptimizerConfig, RunConfig


@pytest.fixture
def photo():
    """A 40 x 40 image whose pixels all differ along x, y and channel."""
    y, x = np.mgrid[:40, :40]
    pixels = np.stack([x * 6, y * 6, (x + y) * 3], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def digits_config():
    """Builds a digits run with two random views of 16 px."""

    def build(**data):
        aug = {
            "affine": {"enabled": True, "degrees": 15, "translate": [0.1, 0.1]},
            "color_jitter": {"enabled": True, "contrast": 0.5, "prob": 0.8},
            "crop_size": 16,
            "num_crops": 2,
        }
        settings = {"image_size": 16, "num_workers": 0, "train_images": 100, **data}
        return RunConfig(
            data=DataConfig(dataset="digits", **settings),
            augmentations=[aug],
            optimizer=OptimizerConfig(batch_size=16),
            seed=3,
        )

    return build


@pytest.fixture
def image_folder(tmp_path):
    """Writes {"train/cat": 3, …} images under a folder and returns it."""

    def build(**counts):
        for place, count in counts.items():
            folder = tmp_path / "set" / place.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                color = (len(place) * 9 % 256, i * 40 % 256, 77)
                Image.new("RGB", (30, 24), color).save(folder / f"{i}.png")
        return tmp_path / "set"

    return build
