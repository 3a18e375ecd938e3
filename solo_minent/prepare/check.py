"""What a prepared set must hold, and whether every image of it can be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solo_minent.console import progress_bar
from solo_minent.errors import UserError
from solo_minent.machine import cores

if TYPE_CHECKING:
    from solo_minent.data.datasets import ImageSet

LISTED = 20  # corrupt files that an error names
BATCH = 64


class Known(NamedTuple):
    """Published counts of a split; None where there is no such number."""

    classes: int
    images: int | None
    of_each: int | None = None


# Krizhevsky, 2009 (CIFAR); Coates, Ng and Lee, 2011 (STL-10); Le and Yang, 2015 (Tiny-ImageNet);
# Russakovsky et al., 2015, arXiv:1409.0575, table 2 (ImageNet). ImageNet-100 has ImageNet's 50
# validation images of a class.
KNOWN = {
    "cifar10": {"train": Known(10, 50_000, 5000), "test": Known(10, 10_000, 1000)},
    "cifar100": {"train": Known(100, 50_000, 500), "test": Known(100, 10_000, 100)},
    "stl10": {
        "pretrain": Known(10, 105_000),
        "train": Known(10, 5000, 500),
        "test": Known(10, 8000, 800),
    },
    "tiny_imagenet": {"train": Known(200, 100_000, 500), "test": Known(200, 10_000, 50)},
    "imagenet100": {"train": Known(100, None), "test": Known(100, 5000, 50)},
    "imagenet": {"train": Known(1000, 1_281_167), "test": Known(1000, 50_000, 50)},
}


class Row(NamedTuple):
    """A line of the table: what was found of a split."""

    split: str
    images: int
    classes: int
    smallest: int
    largest: int


def load_all(dataset: str, root: Path | None) -> dict[str, ImageSet]:
    """Every split of a set by name; an unlabelled set of one's own may come without a test."""
    from solo_minent.data.datasets import load_split

    names = list(KNOWN.get(dataset, ("train", "test")))
    splits = {}
    for name in names:
        if name == "test" and dataset == "custom" and not splits["train"].classes:
            tests = [f / test for f in (root, root / dataset) for test in ("val", "test")]
            if not any(folder.is_dir() for folder in tests):
                continue
        splits[name] = load_split(dataset, root, name)
    return splits


def check_counts(
    dataset: str, splits: dict[str, ImageSet], classes: list[str] | None, where: str, fix: str
) -> list[Row]:
    """Compares every split with its published counts.

    Args:
        dataset: its name.
        splits: of `load_all`.
        classes: names that the set must have; None: those that it has.
        where: what an error names as the place.
        fix: what an error proposes.

    Raises:
        UserError: a number differs, a class is empty, or the classes are others.
    """
    rows = []
    for name, images in splits.items():
        if classes is not None and set(images.classes) != set(classes):
            others = sorted(set(images.classes) ^ set(classes))
            raise UserError(
                f"{name} has other classes than {dataset}: {', '.join(others[:5])} in {where}. "
                f"{len(classes)} class folders were expected, found {len(images.classes)}. {fix}"
            )
        labelled = images.targets[images.targets >= 0]
        counts = np.bincount(labelled, minlength=len(images.classes))
        known = KNOWN.get(dataset, {}).get(name)
        if known is not None:
            if classes is not None:
                known = Known(
                    len(classes), known.images and len(classes) * known.of_each, known.of_each
                )
            _compare(name, images, counts, known, where, fix)
        rows.append(
            Row(
                name,
                len(images),
                len(images.classes),
                *((int(counts.min()), int(counts.max())) if len(counts) else (0, 0)),
            )
        )
    return rows


def _compare(
    name: str, images: ImageSet, counts: np.ndarray, known: Known, where: str, fix: str
) -> None:
    if len(images.classes) != known.classes:
        raise UserError(
            f"{name} has {len(images.classes)} classes: {where}. It must have {known.classes}. "
            f"{fix}"
        )
    for label, count in enumerate(counts):
        if count == 0 or known.of_each not in (None, count):
            raise UserError(
                f"class {images.classes[label]} of {name} has {count} images: {where}. "
                f"It must have {known.of_each or 'some'}. {fix}"
            )
    if known.images not in (None, len(images)):
        raise UserError(
            f"{name} has {len(images)} images: {where}. It must have {known.images}. {fix}"
        )


def find_corrupt(images: ImageSet, title: str, workers: int | None = None) -> list[str]:
    """Decodes every image in worker processes, under a progress bar.

    Returns:
        Name of each image that cannot be read or decoded: its path where it has one.
    """
    from torch.utils.data import DataLoader

    workers = cores() if workers is None else workers
    loader = DataLoader(
        _Decoded(images), batch_size=BATCH, num_workers=workers, collate_fn=_failures
    )
    corrupt = []
    with progress_bar() as bar:
        for found in bar.track(loader, description=title):
            corrupt += found
    return corrupt


def check_decodes(splits: dict[str, ImageSet], fix: str) -> None:
    """Raises UserError that counts the corrupt images of all splits and names the first."""
    corrupt = [path for name, images in splits.items() for path in find_corrupt(images, name)]
    if corrupt:
        first = f"The first {LISTED}: " if len(corrupt) > LISTED else ""
        raise UserError(
            f"corrupt images: {len(corrupt)}. {first}{', '.join(corrupt[:LISTED])}. Every image "
            f"must decode. {fix}"
        )


class _Decoded:
    """Gives None for an image that decodes, else its name."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str | None:
        try:
            self.images[index]
        except UserError:
            return self.images.name_of(index)
        return None


def _failures(batch: list[str | None]) -> list[str]:
    return [name for name in batch if name is not None]
