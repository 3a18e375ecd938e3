"""The data sets by name and split. Nothing is downloaded here: `solo-minent prepare` does that.

Small sets live in memory as uint8 arrays, STL-10 is mapped from its files, folders of images are
lists of paths, and any of them may have been packed into h5 files.
"""

from __future__ import annotations

import difflib
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from solo_minent.data.folders import FOLDER_SETS, folder_classes, folder_split
from solo_minent.data.images import (
    UNLABELLED,
    ArrayImages,
    CorruptImageError,
    FileImages,
    ImageSet,
    MappedImages,
)
from solo_minent.errors import UserError

__all__ = [
    "DATASETS",
    "FOLDER_SETS",
    "SPLITS",
    "UNLABELLED",
    "ArrayImages",
    "CorruptImageError",
    "FileImages",
    "ImageSet",
    "MappedImages",
    "check_dataset",
    "load_split",
    "num_classes",
    "stratified_indices",
]

DATASETS = ("digits", "cifar10", "cifar100", "stl10", *FOLDER_SETS)
SPLITS = ("pretrain", "train", "test")
_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "stl10": 10}
_STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
_STL10_SIZE = (96, 96)


def load_split(
    dataset: str,
    root: str | Path | None,
    split: str,
    subset: int | None = None,
    seed: int = 0,
    file_list: str | Path | None = None,
    format: str = "image_folder",
) -> ImageSet:
    """One split of a data set.

    dataset: one of `DATASETS`; root: its folder (`digits` needs none).
    split: `train` or `test`, with labels, or `pretrain`: what a method is trained on, the same as
    `train` but for stl10, which adds its 100,000 unlabelled images (label -1) after the 5,000.
    subset: keep that many images, stratified by class and drawn with `seed`, in file order; the
    unlabelled count as one more class.
    file_list: text file that names the training images to keep (`folders.select_listed`), of
    folder sets and h5 files; the subset is drawn from them.
    format: `h5` reads `<root>/train.h5` and `<root>/val.h5`; all others read the set as it is
    published.

    `digits` is split 80/20 by class once and for ever: the run's seed does not move it.
    `test` of a folder set is `<root>/val`, else `<root>/test`. A `train` folder that holds images
    and no class folders is an unlabelled set: labels -1, no classes.

    Raises UserError on an unknown name, a missing or wrongly laid out folder, a bad list or subset.
    """
    check_dataset(dataset)
    if split not in SPLITS:
        raise UserError(f"unknown split: {split}. Allowed: {', '.join(SPLITS)}. Set split=train.")
    if file_list is not None and (
        split == "test" or (format != "h5" and dataset not in FOLDER_SETS)
    ):
        raise UserError(
            f"a file list cannot choose images of {dataset} {split}: {file_list}. It names "
            f"training images of {', '.join(FOLDER_SETS)} or of h5 files. Set data.file_list=null."
        )
    images: ImageSet
    if format == "h5":
        from solo_minent.data.h5 import h5_split

        images = h5_split(dataset, root, split, file_list)
    elif dataset == "digits":
        images = _digits("test" if split == "test" else "train")
    elif dataset == "stl10":
        images = _stl10(root, split)
    elif dataset in FOLDER_SETS:
        images = folder_split(dataset, root, split, file_list)
    else:
        images = _cifar(dataset, root, "test" if split == "test" else "train")
    if subset is None:
        return images
    return images.select(stratified_indices(images.targets, subset, seed, f"{dataset} {split}"))


def num_classes(dataset: str, root: str | Path | None = None, format: str = "image_folder") -> int:
    """Number of classes; 0 for an unlabelled set. Reads class names alone, no image."""
    check_dataset(dataset)
    if dataset in _CLASSES:
        return _CLASSES[dataset]
    if format == "h5":
        from solo_minent.data.h5 import h5_classes

        return len(h5_classes(dataset, root))
    return len(folder_classes(dataset, root))


def check_dataset(dataset: str) -> None:
    """Raises UserError unless `dataset` is one of `DATASETS`."""
    if dataset in DATASETS:
        return
    close = difflib.get_close_matches(str(dataset), DATASETS, n=3)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Allowed: {', '.join(DATASETS)}."
    raise UserError(f"unknown data set: {dataset}. {hint} Set data.dataset.")


def stratified_indices(
    targets: np.ndarray, count: int, seed: int, name: str = "the set"
) -> np.ndarray:
    """`count` sorted indices with the class shares of `targets` (largest remainder), seeded."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise UserError(
            f"a subset must be a positive number of images: {count!r}. {name} has {len(targets)}. "
            "Set data.train_images or data.val_images, or null for all."
        )
    if count > len(targets):
        raise UserError(
            f"a subset of {count} images is larger than {name}: {len(targets)}. At most "
            f"{len(targets)}. Lower data.train_images or data.val_images, or null for all."
        )
    labels, sizes = np.unique(targets, return_counts=True)
    shares = sizes * count / len(targets)
    take = np.floor(shares).astype(int)
    order = np.argsort(-(shares - take), kind="stable")
    take[order[: count - take.sum()]] += 1
    rng = np.random.RandomState(seed)  # its stream is frozen by NumPy's policy
    chosen = [
        rng.permutation(np.flatnonzero(targets == label))[:n]
        for label, n in zip(labels, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _digits(split: str) -> ArrayImages:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(gray[..., None], 3, axis=-1)
    rng = np.random.RandomState(0)
    in_test = np.zeros(len(images), dtype=bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(bunch.target == label))
        in_test[members[: round(0.2 * len(members))]] = True
    keep = in_test if split == "test" else ~in_test
    classes = [str(label) for label in range(10)]
    return ArrayImages(images[keep], bunch.target[keep], classes, f"digits {split}")


def _cifar(dataset: str, root: str | Path | None, split: str) -> ArrayImages:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    place = _place(dataset, root, kind)
    try:
        data = kind(str(place), train=split == "train", download=False)
    except RuntimeError as error:
        raise _damaged(dataset, place / kind.base_folder) from error
    targets = np.asarray(data.targets)
    return ArrayImages(data.data, targets, list(data.classes), f"{dataset} {split}")


def _stl10(root: str | Path | None, split: str) -> MappedImages:
    from torchvision.datasets import STL10

    folder = _place("stl10", root, STL10) / STL10.base_folder
    names = dict(STL10.test_list if split == "test" else STL10.train_list)
    if split == "train":
        names.pop("unlabeled_X.bin")
    for name, md5 in names.items():
        path = folder / name
        if not path.is_file() or _md5(path, path.stat().st_size, path.stat().st_mtime_ns) != md5:
            raise _damaged("stl10", path)
    pixels = [folder / name for name in names if name.endswith("_X.bin")]
    labels = next(folder / name for name in names if name.endswith("_y.bin"))
    targets = np.fromfile(labels, dtype=np.uint8).astype(np.int64) - 1
    total = sum(path.stat().st_size for path in pixels) // (3 * _STL10_SIZE[0] * _STL10_SIZE[1])
    unlabelled = np.full(total - len(targets), UNLABELLED)
    targets = np.concatenate([targets, unlabelled])
    return MappedImages(pixels, _STL10_SIZE, targets, list(_STL10), f"stl10 {split}")


# The unlabelled images are 2.7 GB: their sum is taken once in a process, not once for each loader.
@functools.lru_cache(maxsize=16)
def _md5(path: Path, size: int, modified: int) -> str:
    from torchvision.datasets.utils import calculate_md5

    return calculate_md5(str(path), chunk_size=1 << 20)


def _place(dataset: str, root: str | Path | None, kind: Any) -> Path:
    """The folder that holds a torchvision set's own folder, unpacked from its archive if need be.

    kind: torchvision's class, for its `base_folder`, `filename` and `tgz_md5`.
    """
    fix = (
        "Give its folder: data.root=<folder>. "
        f"To get it: solo-minent prepare {dataset} --root <folder>"
    )
    if root is None:
        raise UserError(f"{dataset} needs a folder: data.root is not set. {fix}")
    base = Path(root).expanduser()
    places = [base, base / dataset]
    if base.name == kind.base_folder:
        places.append(base.parent)
    for place in places:
        if (place / kind.base_folder).is_dir():
            return place
        if (place / kind.filename).is_file():
            _extract(place / kind.filename, kind.base_folder, kind.tgz_md5)
            return place
    looked = ", ".join(str(place / kind.base_folder) for place in places)
    raise UserError(
        f"{dataset} not found: {base}. Looked for {looked} and {kind.filename} there. {fix}"
    )


def _damaged(dataset: str, path: Path) -> UserError:
    return UserError(
        f"{dataset} is damaged: {path}. A file is missing or its MD5 differs. Remove it and get it "
        f"again: solo-minent prepare {dataset} --root <folder>"
    )


def _extract(archive: Path, folder: str, md5: str) -> None:
    """Unpacks beside the archive under a temporary name: a killed run leaves no half a set."""
    from torchvision.datasets.utils import check_md5, extract_archive

    if not check_md5(str(archive), md5):
        raise UserError(
            f"the archive is damaged: {archive}. Its MD5 must be {md5}. Download it again."
        )
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{folder}-") as temporary:
            extract_archive(str(archive), temporary)
            try:
                os.replace(Path(temporary) / folder, archive.parent / folder)
            except OSError:
                if not (archive.parent / folder).is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive}: {error}. Its folder must be writable. "
            f"Unpack it yourself: tar -xzf {archive}"
        ) from error
