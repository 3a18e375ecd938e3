"""What the data sets that representations are transferred to are: metrics, splits, layouts, sizes.

Metrics and splits are those of Kornblith et al., 2019, arXiv:1805.08974, and SimCLR, Chen et al.,
2020, arXiv:2002.05709, appendix B.8; layouts are those that torchvision makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

SPLIT_SEED = 0  # splits are part of the data: runs with other seeds see the same images
CALTECH_TRAIN = 30  # images of a class
EUROSAT_TRAIN = 0.8  # Helber et al., 2019, arXiv:1709.00029


class Known(NamedTuple):
    """What a set is.

    Attributes:
        kind: torchvision's class.
        metric: what the field reports, top1, mean_per_class or map11.
        holds: what is below torchvision's root.
        sizes: published numbers of images, of each split; of all where the split is drawn.
        split: where the splits come from.
        options: what torchvision's class takes for each split.
    """

    kind: str
    metric: str
    holds: tuple[str, ...]
    sizes: dict[str, int]
    split: str = "the authors' split"
    options: dict[str, dict[str, Any]] = {}


def _splits(**names: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": name} for split, name in names.items()}


_THREE = _splits(train="train", val="val", test="test")
_TWO = _splits(train="train", test="test")
KNOWN = {
    "aircraft": Known(
        "FGVCAircraft",
        "mean_per_class",
        ("fgvc-aircraft-2013b/data/images", "fgvc-aircraft-2013b/data/variants.txt"),
        {"train": 3334, "val": 3333, "test": 3333},
        options=_THREE,
    ),
    "caltech101": Known(
        "Caltech101",
        "mean_per_class",
        # The field counts it: 3,060 training images are 30 of 102 classes. torchvision does not.
        ("caltech101/101_ObjectCategories/BACKGROUND_Google",),
        {"all": 9144},
        f"{CALTECH_TRAIN} training images of each of the 102 classes, background included, drawn "
        f"with seed {SPLIT_SEED}, the rest for the test",
    ),
    "cars": Known(
        "StanfordCars",
        "top1",
        (
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
        ),
        {"train": 8144, "test": 8041},
        options=_TWO,
    ),
    "dtd": Known(
        "DTD",
        "top1",
        ("dtd/dtd/images", "dtd/dtd/labels/train1.txt"),
        {"train": 1880, "val": 1880, "test": 1880},
        "the authors' split 1",
        options={split: {**option, "partition": 1} for split, option in _THREE.items()},
    ),
    "eurosat": Known(
        "EuroSAT",
        "top1",
        ("eurosat/2750",),
        {"all": 27000},
        f"{EUROSAT_TRAIN:.0%} of each class for training, drawn with seed {SPLIT_SEED}",
    ),
    "flowers102": Known(
        "Flowers102",
        "mean_per_class",
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        {"train": 1020, "val": 1020, "test": 6149},
        options=_THREE,
    ),
    "food101": Known(
        "Food101",
        "top1",
        ("food-101/images", "food-101/meta/train.json", "food-101/meta/test.json"),
        {"train": 75750, "test": 25250},
        options=_TWO,
    ),
    "pets": Known(
        "OxfordIIITPet",
        "mean_per_class",
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trainval.txt"),
        {"train": 3680, "test": 3669},
        options=_splits(train="trainval", test="test"),
    ),
    "sun397": Known(
        "SUN397",
        "top1",
        ("SUN397/ClassName.txt",),
        {"train": 19850, "test": 19850, "all": 108754},
        "the authors' partition 1",
    ),
    "voc2007": Known(
        "VOCDetection",
        "map11",
        ("VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
        {"train": 2501, "val": 2510, "test": 4952},
    ),
}
TRANSFER_SETS = tuple(KNOWN)


def how_to_get(known: Known, root: Path) -> str:
    """What an error says about a set that is not there."""
    if known.kind == "StanfordCars":
        return (
            "Its address is gone, torchvision cannot download it any more. "
            "Put a copy that somebody kept into these folders."
        )
    arguments = [""]
    if known.kind == "VOCDetection":
        arguments = [f"year='2007', image_set='{name}', " for name in ("trainval", "test")]
    calls = "; ".join(f"{known.kind}({str(root)!r}, {each}download=True)" for each in arguments)
    return (
        "Nothing is downloaded here, as no SHA-256 of it is known. Let torchvision do it: "
        f'python -c "from torchvision.datasets import {known.kind}; {calls}"'
    )
