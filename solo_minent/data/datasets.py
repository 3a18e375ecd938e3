"""Labelled image sets: `(PIL image, int label)` with `.classes` and `.targets`.

Small sets live in memory as uint8 arrays, folders of images as a list of paths. Nothing is ever
downloaded.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Folder sets share one layout: <root>/train/<class>/*.jpg and <root>/val|test/<class>/*.jpg.
FOLDER_SETS = ("custom", "imagenet", "imagenet100", "tiny_imagenet")
DATASETS = ("digits", "cifar10", "cifar100", *FOLDER_SETS)
SPLITS = ("train", "test")
UNLABELLED = -1


class ImageSet(Dataset):
    """classes: class names; targets: int64 array (N,), -1 where a set has no labels."""

    classes: list[str]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order, with the same classes."""
        raise NotImplementedError


class ArrayImages(ImageSet):
    """images: uint8 array (N, H, W, 3) held in memory."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, classes: list[str]) -> None:
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = classes

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.images[index]), int(self.targets[index])

    def select(self, indices: np.ndarray) -> ArrayImages:
        return ArrayImages(self.images[indices], self.targets[indices], self.classes)


class FileImages(ImageSet):
    """paths: image files, decoded to RGB when they are asked for."""

    def __init__(self, paths: list[str], targets: np.ndarray, classes: list[str]) -> None:
        # One array of bytes: a list of a million str is copied page by page into every worker.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = classes

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        path = os.fsdecode(self.paths[index])
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), int(self.targets[index])
        except OSError as error:
            raise UserError(
                f"cannot read an image: {path} ({error}). It must be a whole image file. "
                "Replace or remove it."
            ) from error

    def select(self, indices: np.ndarray) -> FileImages:
        paths = [os.fsdecode(path) for path in self.paths[indices]]
        return FileImages(paths, self.targets[indices], self.classes)


def load_split(
    dataset: str, root: str | Path | None, split: str, subset: int | None = None, seed: int = 0
) -> ImageSet:
    """One split of a data set.

    dataset: one of `DATASETS`; root: its folder (`digits` needs none); split: train or test.
    subset: keep that many images, stratified by class and drawn with `seed`, in file order.

    `digits` is split 80/20 by class once and for ever: the run's seed does not move it.
    `test` of a folder set is `<root>/val`, else `<root>/test`. A `train` folder that holds images
    and no class folders is an unlabelled set: labels -1, no classes.

    Raises UserError on an unknown name, a missing or wrongly laid out folder, a bad subset.
    """
    check_dataset(dataset)
    if split not in SPLITS:
        raise UserError(f"unknown split: {split}. Allowed: train, test. Set split=train.")
    if dataset == "digits":
        images = _digits(split)
    elif dataset in FOLDER_SETS:
        images = _folder(dataset, root, split)
    else:
        images = _cifar(dataset, root, split)
    if subset is None:
        return images
    return images.select(stratified_indices(images.targets, subset, seed, f"{dataset} {split}"))


def num_classes(dataset: str, root: str | Path | None = None) -> int:
    """Number of classes; 0 for an unlabelled folder."""
    check_dataset(dataset)
    known = {"digits": 10, "cifar10": 10, "cifar100": 100}
    if dataset in known:
        return known[dataset]
    return len(_class_folders(_split_folder(dataset, root, "train")))


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
    return ArrayImages(images[keep], bunch.target[keep], [str(label) for label in range(10)])


def _cifar(dataset: str, root: str | Path | None, split: str) -> ArrayImages:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    get = f"python -c \"import torchvision; torchvision.datasets.{kind.__name__}('<folder>', "
    fix = f'Give its folder: data.root=<folder>. To get it: {get}download=True)"'
    if root is None:
        raise UserError(f"{dataset} needs a folder: data.root is not set. {fix}")
    base = Path(root).expanduser()
    places = [base, base / dataset]
    if base.name == kind.base_folder:
        places.append(base.parent)
    for place in places:
        if (place / kind.base_folder).is_dir():
            break
        if (place / kind.filename).is_file():
            _extract(place / kind.filename, kind.base_folder, kind.tgz_md5)
            break
    else:
        looked = ", ".join(str(place / kind.base_folder) for place in places)
        raise UserError(
            f"{dataset} not found: {base}. Looked for {looked} and {kind.filename} there. {fix}"
        )
    try:
        data = kind(str(place), train=split == "train", download=False)
    except RuntimeError as error:
        raise UserError(
            f"{dataset} is damaged: {place / kind.base_folder}. A file is missing or its MD5 "
            f"differs. {fix}"
        ) from error
    return ArrayImages(data.data, np.asarray(data.targets), list(data.classes))


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


def _folder(dataset: str, root: str | Path | None, split: str) -> FileImages:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    train = _split_folder(dataset, root, "train")
    classes = _class_folders(train)
    folder = train if split == "train" else _split_folder(dataset, root, "test")
    if not classes:
        loose = _loose_images(folder)
        if not loose:
            raise UserError(f"no images: {folder}. {_layout(train.parent)}")
        return FileImages(loose, np.full(len(loose), UNLABELLED), [])
    present = _class_folders(folder)
    strangers = sorted(set(present) - set(classes))
    if strangers:
        raise UserError(
            f"class folders without training images: {', '.join(strangers[:5])} in {folder}. "
            f"The classes are those of {train}. Rename or remove them."
        )
    if not present:
        raise UserError(f"no class folders: {folder}. {_layout(train.parent)}")
    for name in present:
        if not make_dataset(str(folder), {name: 0}, IMG_EXTENSIONS, allow_empty=True):
            raise UserError(
                f"a class folder has no images: {folder / name}. Images end in "
                f"{', '.join(IMG_EXTENSIONS)}. Fill or remove it."
            )
    index = {name: label for label, name in enumerate(classes) if name in present}
    samples = make_dataset(str(folder), index, IMG_EXTENSIONS)
    return FileImages([path for path, _ in samples], np.array([y for _, y in samples]), classes)


def _split_folder(dataset: str, root: str | Path | None, split: str) -> Path:
    if root is None:
        raise UserError(
            f"{dataset} needs a folder: data.root is not set. It holds train/<class>/*.jpg and "
            "val/<class>/*.jpg. Give it: data.root=<folder>"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"no such folder: {base}. {_layout(base)} Give it: data.root=<folder>")
    names = ("train",) if split == "train" else ("val", "test")
    for name in names:
        if (base / name).is_dir():
            return base / name
    found = ", ".join(sorted(child.name for child in base.iterdir())[:6]) or "nothing"
    raise UserError(
        f"no {' or '.join(names)} folder in {base}: it holds {found}. {_layout(base)} "
        "Give the folder above: data.root=<folder>"
    )


def _class_folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if names and (loose := _loose_images(folder)):
        raise UserError(
            f"images beside class folders: {loose[0]}. {_layout(folder.parent)} Or no class "
            "folders at all for an unlabelled set. Move the images into class folders."
        )
    return names


def _loose_images(folder: Path) -> list[str]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(
        entry.path
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.lower().endswith(IMG_EXTENSIONS)
    )


def _layout(base: Path) -> str:
    return f"Expected {base}/train/<class>/*.jpg and {base}/val/<class>/*.jpg."
