"""The data sets that representations are transferred to, with the splits and metrics of the field.

torchvision reads them, from the folders that torchvision makes; nothing is downloaded here
(`solo_minent.data.transfer_known` has what is expected). A split that has to be drawn is the same
for every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from solo_minent.allowed import closest, reason
from solo_minent.data.folders import listed_path
from solo_minent.data.images import FileImages, ImageSet, decode
from solo_minent.data.transfer_known import (
    CALTECH_TRAIN,
    EUROSAT_TRAIN,
    KNOWN,
    SPLIT_SEED,
    Known,
    how_to_get,
)
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
]


class TransferSet(NamedTuple):
    """A data set cut as the field cuts it.

    Attributes:
        train, test: images with labels; those of voc2007 are RowImages with targets int64 (N, 20)
            as the devkit has them, 1: there is an object of the class, 0: there are difficult ones
            only, -1: there is none.
        val: the authors' validation images, or None. A result is trained on them, too, once they
            have chosen its hyper-parameters.
        metric: top1, mean_per_class or map11, what the field reports.
        split: where the splits come from, in words.
        drawn: the split was drawn here, with `SPLIT_SEED`.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    metric: str
    split: str
    drawn: bool = False


class RowImages(FileImages):
    """Images with their row of `targets` beside them, instead of a label.

    So targets may have several columns, and whoever meets an image knows which one it was.
    """

    def __getitem__(self, index: int) -> tuple[Image, int]:
        name = self.name_of(index)
        return decode(self.encoded(index), name, index), index

    def select(self, indices: np.ndarray) -> RowImages:
        return RowImages(self.paths[indices], self.targets[indices], self.classes)


def transfer_set(dataset: str, root: str | Path | None) -> TransferSet:
    """Reads one of `TRANSFER_SETS`; every image that it names is there, none is opened.

    Args:
        dataset: its name.
        root: the folder that torchvision was given, `<root>/<dataset>`, or the set's own folder.

    Raises:
        UserError: unknown name, a folder that is missing or lacks a part of the set (with what was
            expected and how to get it), lists that cannot be read, or another number of images than
            was published.
    """
    if dataset not in KNOWN:
        raise UserError(
            f"transfer set is unknown: {dataset}. They are {', '.join(KNOWN)}. "
            f"Name one of them, such as {closest(str(dataset), KNOWN)}."
        )
    known = KNOWN[dataset]
    place = _place(dataset, known, root)
    try:
        found = _READERS.get(dataset, _by_torchvision)(place, known)
    except UserError:
        raise
    # Broken lists surface as whatever torchvision's or SciPy's parser tripped over.
    except Exception as error:
        raise _damaged(dataset, place, f"{type(error).__name__}: {reason(error)}") from error
    _check(dataset, known, place, found)
    return found


def draw_each(
    targets: np.ndarray, take: Callable[[int], int], seed: int = SPLIT_SEED
) -> np.ndarray:
    """A mask bool (N,) that is true for `take(size)` images of each class, drawn with a seed.

    Args:
        targets: labels int64 (N,).
        take: number of images that are drawn from a class of a size.
        seed: of NumPy's frozen RandomState.
    """
    rng = np.random.RandomState(seed)
    chosen = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        chosen[members[: take(len(members))]] = True
    return chosen


def joined(first: FileImages, second: FileImages) -> FileImages:
    """The images of both, one behind the other; they have the same classes."""
    paths = np.concatenate([first.paths, second.paths])
    return type(first)(paths, np.concatenate([first.targets, second.targets]), first.classes)


def _by_torchvision(place: Path, known: Known) -> TransferSet:
    from torchvision import datasets

    kind = getattr(datasets, known.kind)
    splits = {}
    for split, options in known.options.items():
        data = kind(str(place), **options)
        if hasattr(data, "_samples"):  # StanfordCars
            paths, labels = zip(*data._samples, strict=True)
        else:  # OxfordIIITPet calls its files `_images`
            paths, labels = getattr(data, "_image_files", None) or data._images, data._labels
        # Older torchvisions have no names for the flowers.
        names = list(getattr(data, "classes", ())) or [str(n) for n in range(max(labels) + 1)]
        splits[split] = FileImages(_text(paths), np.array(labels, dtype=np.int64), names)
    train, test = splits["train"], splits["test"]
    return TransferSet(train, splits.get("val"), test, known.metric, known.split)


def _caltech101(place: Path, known: Known) -> TransferSet:
    images = _folder_images(place / "caltech101" / "101_ObjectCategories")
    sizes = np.bincount(images.targets, minlength=len(images.classes))
    if sizes.min() <= CALTECH_TRAIN:
        name = images.classes[int(sizes.argmin())]
        raise _damaged("caltech101", place, f"class {name} has {sizes.min()} images")
    return _drawn(images, draw_each(images.targets, lambda _: CALTECH_TRAIN), known)


def _eurosat(place: Path, known: Known) -> TransferSet:
    images = _folder_images(place / "eurosat" / "2750")
    mask = draw_each(images.targets, lambda size: round(EUROSAT_TRAIN * size))
    return _drawn(images, mask, known)


def _sun397(place: Path, known: Known) -> TransferSet:
    from torchvision.datasets import SUN397

    data = SUN397(str(place))
    pairs = sorted(zip(_text(data._image_files), data._labels, strict=True))  # torchvision globs
    paths, labels = zip(*pairs, strict=True)
    images = FileImages(list(paths), np.array(labels, dtype=np.int64), list(data.classes))
    base = place / "SUN397"
    for folder in (base, base / "Partitions", place / "Partitions", place):
        lists = [folder / f"{name}_01.txt" for name in ("Training", "Testing")]
        if all(path.is_file() for path in lists):
            return _sun397_listed(base, images, lists, known)
    words = f"half of each class for training, drawn with seed {SPLIT_SEED} (no Training_01.txt)"
    mask = draw_each(images.targets, lambda size: size // 2)
    return _drawn(images, mask, known._replace(split=words))


def _sun397_listed(base: Path, images: FileImages, lists: list[Path], known: Known) -> TransferSet:
    index = {os.fsdecode(path): row for row, path in enumerate(images.paths)}
    parts = []
    for path in lists:
        wanted = [str(base / line.strip("/")) for line in _lines(path)]
        missing = [name for name in wanted if name not in index]
        if missing:
            what = f"{len(missing)} images of {path.name} are missing, first {missing[0]}"
            raise _damaged("sun397", base.parent, what)
        parts.append(images.select(np.array([index[name] for name in wanted], dtype=np.int64)))
    return TransferSet(parts[0], None, parts[1], known.metric, known.split)


def _voc2007(place: Path, known: Known) -> TransferSet:
    base = place / "VOCdevkit" / "VOC2007"
    lists = base / "ImageSets" / "Main"
    splits = []
    for split in ("train", "val", "test"):
        names = _lines(lists / f"{split}.txt")
        columns = []
        for label in VOC_CLASSES:
            rows = [line.split() for line in _lines(lists / f"{label}_{split}.txt")]
            if [row[0] for row in rows] != names:
                what = f"{label}_{split}.txt names other images than {split}.txt"
                raise _damaged("voc2007", place, what)
            columns.append([int(row[1]) for row in rows])
        targets = np.array(columns, dtype=np.int64).T
        if not np.isin(targets, (-1, 0, 1)).all():
            raise _damaged("voc2007", place, f"labels of {split} are not -1, 0 and 1")
        folder = base / "JPEGImages"
        paths = [str(listed_path(folder, f"{name}.jpg", lists)) for name in names]
        splits.append(RowImages(paths, targets, VOC_CLASSES))
    return TransferSet(*splits, known.metric, known.split)


_READERS = {
    "caltech101": _caltech101,
    "eurosat": _eurosat,
    "sun397": _sun397,
    "voc2007": _voc2007,
}


def _folder_images(folder: Path) -> FileImages:
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder))
    paths, labels = zip(*data.samples, strict=True)
    return FileImages(list(paths), np.array(labels, dtype=np.int64), list(data.classes))


def _drawn(images: FileImages, train: np.ndarray, known: Known) -> TransferSet:
    parts = [images.select(np.flatnonzero(mask)) for mask in (train, ~train)]
    return TransferSet(parts[0], None, parts[1], known.metric, known.split, drawn=True)


def _text(paths: Any) -> list[str]:
    return [str(path) for path in paths]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _place(dataset: str, known: Known, root: str | Path | None) -> Path:
    """The folder that torchvision calls root."""
    if root is None:
        raise UserError(
            f"{dataset} needs a folder: none is set. It holds {', '.join(known.holds)}. "
            f"{how_to_get(known, Path('<folder>'))}"
        )
    base = Path(root).expanduser().absolute()
    places = (base, base / dataset, base.parent)
    for place in places:
        if all((place / part).exists() for part in known.holds):
            return place
    for place in places:
        missing = [part for part in known.holds if not (place / part).exists()]
        if len(missing) < len(known.holds):
            raise UserError(
                f"{dataset} is not whole: {place} lacks {', '.join(missing)}. It holds "
                f"{', '.join(known.holds)}. {how_to_get(known, place)}"
            )
    raise UserError(
        f"{dataset} not found: {base}. Looked for {', '.join(known.holds)} there and in "
        f"{base / dataset}. {how_to_get(known, base)}"
    )


def _check(dataset: str, known: Known, place: Path, found: TransferSet) -> None:
    splits = {"train": found.train, "val": found.val, "test": found.test}
    splits = {name: images for name, images in splits.items() if images is not None}
    for name, images in splits.items():
        if images.classes != found.train.classes:
            raise _damaged(dataset, place, f"{name} has other classes than train")
        missing = [path for path in map(os.fsdecode, images.paths) if not os.path.isfile(path)]
        if missing:
            raise _damaged(dataset, place, f"{len(missing)} images are missing, first {missing[0]}")
    sizes = {name: len(images) for name, images in splits.items()}
    published = {name: count for name, count in known.sizes.items() if name != "all"}
    if found.drawn:
        sizes, published = {"all": sum(sizes.values())}, {"all": known.sizes["all"]}
    if sizes != published:
        words = [
            ", ".join(f"{name} {count}" for name, count in each.items())
            for each in (sizes, published)
        ]
        raise UserError(
            f"{dataset} has other images than were published: {place}, {words[0]}. They are "
            f"{words[1]}. Complete it, or put your own choice of it into train/<class> and "
            "val/<class> and evaluate it as custom."
        )


def _damaged(dataset: str, place: Path, what: str) -> UserError:
    return UserError(
        f"{dataset} is damaged: {place} ({what}). It must be whole, as torchvision unpacks it. "
        f"Remove it and get it again. {how_to_get(KNOWN[dataset], place)}"
    )
