"""Folders of images: `<root>/train/<class>/*.jpg` and `<root>/val|test/<class>/*.jpg`.

Layouts that would train and mean nothing, such as Tiny-ImageNet's `val` as it is downloaded, are
recognised and refused with the command that puts them right.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from solo_minent.data.images import UNLABELLED, FileImages, ImageSet
from solo_minent.errors import UserError

# The number of classes that a name promises; a tree of another number is another data set.
CLASS_COUNTS = {"tiny_imagenet": 200, "imagenet100": 100, "imagenet": 1000}
FOLDER_SETS = ("custom", "imagenet", "imagenet100", "tiny_imagenet")
_ARCHIVE_FOLDERS = {"tiny_imagenet": "tiny-imagenet-200"}


def folder_split(
    dataset: str, root: str | Path | None, split: str, file_list: str | Path | None = None
) -> FileImages:
    """One split of a folder set, in the order of sorted folders and file names.

    split: pretrain, train (`<root>/train`) or test (`<root>/val`, else `<root>/test`); file_list:
    see `select_listed`. A `train` folder that holds images and no class folders is an unlabelled
    set: labels -1, no classes.

    Raises UserError on a missing or wrong layout, on a class folder without images, on what would
    be passed over or read twice in silence (a folder that cannot be listed, a broken link, a link
    to a folder above, a pipe), and for tiny_imagenet, imagenet100 and imagenet on another number of
    classes than their own.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    train = split_folder(dataset, root, "train")
    classes = _train_classes(dataset, train)
    folder = split_folder(dataset, root, "test") if split == "test" else train
    if not classes:
        loose = _loose_images(folder)
        if not loose:
            raise UserError(f"no images: {folder}. {_found(folder)}{_layout(train.parent)}")
        images = FileImages(loose, np.full(len(loose), UNLABELLED), [])
    else:
        present = _test_classes(dataset, folder, classes) if folder != train else classes
        index = {name: label for label, name in enumerate(classes) if name in set(present)}
        samples = [
            (path, label) for name, label in index.items() for path in _images_below(folder / name)
        ]
        targets = np.array([label for _, label in samples], dtype=np.int64)
        filled = np.bincount(targets, minlength=len(classes))
        empty = [name for name, label in index.items() if not filled[label]]
        if empty:
            raise UserError(
                f"a class folder has no images: {folder / empty[0]} ({len(empty)} of "
                f"{len(present)} are empty). Images end in {', '.join(IMG_EXTENSIONS)}. "
                "Fill or remove it."
            )
        images = FileImages([path for path, _ in samples], targets, classes)
    if file_list is None:
        return images
    return select_listed(images, file_list, str(folder))


def folder_classes(dataset: str, root: str | Path | None) -> list[str]:
    """Class names of the training folder, sorted; none for an unlabelled set. Opens no class."""
    return _train_classes(dataset, split_folder(dataset, root, "train"))


def split_folder(dataset: str, root: str | Path | None, split: str) -> Path:
    """The folder of a split: train, or for test the first of val and test."""
    base = root_folder(dataset, root)
    names = ("val", "test") if split == "test" else ("train",)
    inner = _ARCHIVE_FOLDERS.get(dataset, dataset)
    for place in (base, base / dataset, base / inner):
        for name in names:
            if (place / name).is_dir():
                return place / name
    raise UserError(
        f"no {' or '.join(names)} folder in {base}: it holds {_content(base)}. {_layout(base)} "
        "Give the folder above: data.root=<folder>"
    )


def root_folder(dataset: str, root: str | Path | None) -> Path:
    """data.root as a path to a folder that is there."""
    if root is None:
        raise UserError(
            f"{dataset} needs a folder: data.root is not set. It holds train/<class>/*.jpg and "
            "val/<class>/*.jpg. Give it: data.root=<folder>"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"no such folder: {base}. {_layout(base)} Give it: data.root=<folder>")
    return base


def check_class_count(dataset: str, count: int, place: Path) -> None:
    """Raises UserError where a set of a known number of classes has another one."""
    expected = CLASS_COUNTS.get(dataset, count)
    if count == expected:
        return
    fix = "Give the folder of that set: data.root=<folder>, or set data.dataset=custom."
    if dataset == "imagenet100" and count == CLASS_COUNTS["imagenet"]:
        base = place.parent
        fix = f"Make it: solo-minent prepare imagenet100 --from {base} --root <new folder>"
    raise UserError(
        f"{dataset} has {expected} classes, this is another set: {place} has {count}. {fix}"
    )


def select_listed(images: ImageSet, file_list: str | Path, place: str) -> ImageSet:
    """The images that a text file names, in the order of the set; place: for messages.

    One image a line, `<class>/<file>`, or the bare file name of ImageNet, whose class is the part
    before the first `_`: `n01440764_10026.JPEG` (SimCLR's 1 % and 10 % lists). Only the first and
    the last part of a path count. Blank lines and lines that begin with `#` are passed over.

    Raises UserError on a list that is missing, empty, no text, names an image twice or one that is
    not there.
    """
    lines = _read_list(file_list)
    labels = {name: label for label, name in enumerate(images.classes)}
    wanted: dict[tuple[int, str], int] = {}
    missing = []
    for number, line in lines:
        folder, slash, file = line.partition("/")
        file = file.rpartition("/")[2]
        if not slash:
            folder, file = (line.partition("_")[0] if labels else ""), line
        label = labels.get(folder) if labels or folder else UNLABELLED
        if label is None:
            missing.append((number, line))
        elif wanted.setdefault((label, file), number) != number:
            first = wanted[label, file]
            raise UserError(
                f"the file list names an image twice: {file_list}, lines {first} and {number}: "
                f"{line}. Each image stands there once. Remove one line."
            )
    keys = zip(images.targets.tolist(), images.file_names(), strict=True)
    chosen = [(index, key) for index, key in enumerate(keys) if key in wanted]
    found = {key for _, key in chosen}
    text = dict(lines)
    missing += [(number, text[number]) for key, number in wanted.items() if key not in found]
    if missing:
        number, line = min(missing)
        raise UserError(
            f"the file list names {len(missing)} missing images of {len(lines)}: {file_list}, "
            f"line {number}: {line}. They were looked for in {place} as <class>/<file>. "
            "Complete the data, or remove the lines."
        )
    if len(chosen) > len(found):
        raise UserError(
            f"{len(chosen) - len(found)} lines of the file list name several images: {file_list}. "
            f"A class of {place} has files of the same name in different folders. Rename them."
        )
    return images.select(np.array([index for index, _ in chosen]))


def listed_path(folder: Path, name: str, source: str | Path) -> Path:
    """The file below a folder that a list or an annotation of somebody else names.

    Raises UserError, which names the source, if the name leaves the folder.
    """
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise UserError(
            f"a name leaves its folder: {name[:200]!r} in {source}. Files below {folder} may be "
            "listed. Correct the list."
        )
    return folder / name


def _read_list(file_list: str | Path) -> list[tuple[int, str]]:
    path = Path(file_list).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"cannot read the file list: {path} ({reason}). A text file with one image a line was "
            "expected. Set data.file_list, or null for all images."
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise UserError(
            f"the file list is empty: {path}. One image a line was expected, such as "
            "n01440764/n01440764_10026.JPEG. Set data.file_list=null for all images."
        )
    return lines


def _train_classes(dataset: str, train: Path) -> list[str]:
    classes = _class_folders(train)
    if dataset in CLASS_COUNTS:
        if not classes:
            raise UserError(
                f"no class folders: {train}. {_found(train)}{_layout(train.parent)} "
                f"See solo-minent prepare {dataset}."
            )
        check_class_count(dataset, len(classes), train)
        # A raw val would only be met after the training.
        val = train.parent / "val"
        if val.is_dir():
            _test_classes(dataset, val, classes)
    return classes


def _test_classes(dataset: str, folder: Path, classes: list[str]) -> list[str]:
    """Class folders of val or test, all of them classes of train."""
    present = _class_folders(folder)
    base = folder.parent
    raw = folder / "images"
    if "images" in present and "images" not in classes and any(os.scandir(raw)):
        tiny = dataset == "tiny_imagenet" or (folder / "val_annotations.txt").is_file()
        what = "Tiny-ImageNet's, as it is downloaded" if tiny else "no class of train"
        fix = f"solo-minent prepare tiny_imagenet --root {base}" if tiny else "one folder a class"
        raise UserError(
            f"validation images are not sorted into classes: {raw} is {what}. Expected "
            f"{folder}/<class>/*.JPEG. Sort them: {fix}"
        )
    if not present:
        raise UserError(f"no class folders: {folder}. {_found(folder)}{_layout(base)}")
    strangers = sorted(set(present) - set(classes))
    if strangers:
        raise UserError(
            f"class folders without training images: {', '.join(strangers[:5])} in {folder}. "
            f"The classes are those of {base / 'train'}. Rename or remove them."
        )
    if dataset in CLASS_COUNTS and 2 * len(present) < len(classes):
        raise UserError(
            f"most classes are missing: {folder} has {len(present)} of {len(classes)}. Each class "
            f"of {base / 'train'} has its folder there. See solo-minent prepare {dataset}."
        )
    return present


def _class_folders(folder: Path) -> list[str]:
    names = sorted(
        entry.name
        for entry, mode in _entries(folder)
        if stat.S_ISDIR(mode) and not entry.name.startswith(".")
    )
    if names and (loose := _loose_images(folder)):
        raise UserError(
            f"images beside class folders: {loose[0]}. {_layout(folder.parent)} Or no class "
            "folders at all for an unlabelled set. Move the images into class folders."
        )
    return names


def _loose_images(folder: Path) -> list[str]:
    return sorted(entry.path for entry, mode in _entries(folder) if stat.S_ISREG(mode))


def _images_below(folder: Path) -> list[str]:
    """The images of a class and its folders, in the order of torchvision's `make_dataset`."""
    found: list[tuple[str, list[str]]] = []
    waiting = [(str(folder), frozenset())]
    while waiting:
        place, above = waiting.pop()
        status = os.stat(place)
        # Through a link to a folder above, each image would be met once a turn.
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(
                f"a link leads to a folder above it: {place} -> {os.path.realpath(place)}. "
                "Its images would be read again and again. Remove it."
            )
        files = []
        for entry, mode in _entries(place):
            if stat.S_ISDIR(mode):
                waiting.append((entry.path, above | {here}))
            elif stat.S_ISREG(mode):
                files.append(entry.path)
        found.append((place, sorted(files)))
    return [path for _, files in sorted(found) for path in files]


def _entries(folder: str | Path) -> Iterator[tuple[os.DirEntry, int]]:
    """The folders and images in a folder, each with its mode; links count as what they lead to.

    Raises UserError where the folder cannot be listed, a link is broken (hidden ones but images
    are passed over), or an image is no regular file: reading a pipe would never end.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"cannot list a folder: {folder} ({error.strerror}). Its images would be missing. "
            "Make it readable, or remove it."
        ) from error
    for entry in entries:
        image = entry.name.lower().endswith(IMG_EXTENSIONS)
        mode = _mode(entry)
        if mode is None:
            if image or not entry.name.startswith("."):
                raise UserError(
                    f"a broken link: {entry.path} -> {os.readlink(entry.path)}. It must lead to "
                    "an image or a folder. Mount or repair what it leads to, or remove it."
                )
        elif stat.S_ISDIR(mode) or (image and stat.S_ISREG(mode)):
            yield entry, mode
        elif image:
            raise UserError(
                f"no regular file: {entry.path}. A name with the ending of an image must be a "
                "file or a folder, not a pipe, socket or device. Remove it."
            )


def _mode(entry: os.DirEntry) -> int | None:
    """Folder, regular file, or 0: something else; of a link what it leads to, None if broken."""
    if not entry.is_symlink():  # known without asking the file system once more
        return stat.S_IFDIR if entry.is_dir() else stat.S_IFREG if entry.is_file() else 0
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:  # nothing there, a link to itself, or a folder on the way that is closed
        return None


def _found(folder: Path) -> str:
    """What a folder without classes is known to be, with the way out, or nothing."""
    names = [entry.name for entry in os.scandir(folder)]
    archives = sum(name.endswith(".tar") for name in names)
    if archives:
        return f"It holds {archives} .tar archives: unpack each into a folder of its name. "
    flat = sum(name.startswith("ILSVRC2012_val_") for name in names)
    if flat:
        return (
            f"It holds ImageNet's {flat} validation images unsorted (ILSVRC2012_val_*). Move it "
            f"away and unpack it sorted: solo-minent prepare imagenet --root {folder.parent} "
            "--from <folder of the archives>. "
        )
    return ""


def _content(base: Path) -> str:
    return ", ".join(sorted(child.name for child in base.iterdir())[:6]) or "nothing"


def _layout(base: Path) -> str:
    return f"Expected {base}/train/<class>/*.jpg and {base}/val/<class>/*.jpg."
