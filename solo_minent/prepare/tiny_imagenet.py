"""Tiny-ImageNet: as published, its validation images lie in one folder, their classes in a text.

`val/images/*.JPEG` and `val/val_annotations.txt` become `val/<class>/*.JPEG`. Images are renamed
one by one and never deleted, so a killed run is finished by the next.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from solo_minent.console import progress_bar
from solo_minent.errors import UserError
from solo_minent.prepare.archives import Archive, Job, check_room, fetch, unpack

# MD5 as in ContinualAI/avalanche@2b02787, benchmarks/datasets/tiny_imagenet/tiny_imagenet.py, and
# many others. Unpacked: 120,000 files, most of them smaller than the 4 KiB block that each takes.
ARCHIVE = Archive(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    filename="tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    size=248_100_043,
    unpacked=120_000 * 4096,
)
FOLDER = "tiny-imagenet-200"
ANNOTATIONS = "val_annotations.txt"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def prepare_tiny_imagenet(job: Job) -> Path:
    """Downloads, unpacks or copies the set as far as it is not there, and rearranges `val`.

    The source is an archive, the folder of one, or an unpacked tree (copied; only a tree that is
    the root itself is rearranged where it lies).

    Returns:
        Folder for `data.root`.
    """
    base = job.root if _staged(job).exists() else job.place(FOLDER)
    if _staged(job).exists() or not _is_tree(base):
        base = job.root
        _bring(job)
    _arrange(job, base)
    return base


def read_annotations(path: Path, classes: set[str]) -> dict[str, str]:
    """File name -> class of the validation images.

    Raises UserError if the file is missing, cut short or names a class that is not in `classes`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}. It says which class each validation image has. "
            f"Take it from {ARCHIVE.url}"
        ) from error
    labels = {}
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes:
            raise UserError(
                f"line {number} names no class of train: {path}. Each line is "
                f"<file>, <class> and a box, separated by tabs. Take it from {ARCHIVE.url}"
            )
        labels[name] = label
    return labels


def _bring(job: Job) -> None:
    """Fills the root from archive or tree; what was staged whole by a killed run is taken."""
    staged = _staged(job)
    if not staged.exists():
        for name in ("train", "val"):
            if os.path.lexists(job.root / name):
                raise UserError(
                    f"only a part of {job.dataset} is there: {job.root / name}. Both train and "
                    f"val are needed, or neither. Move it away and run again: {job.again}"
                )
        check_room(job, ARCHIVE.size + ARCHIVE.unpacked)
        unpacked = job.staging / "unpacked"
        if job.source is not None and (tree := _tree_in(job.source)):
            if tree.resolve() in job.root.resolve().parents:
                raise UserError(
                    f"--root lies in the tree of --from: {job.root}. A copy of {tree} is made. "
                    f"Give a folder outside, or leave --from away: --root {tree}"
                )
            job.say(f"copying {tree}")
            shutil.rmtree(unpacked, ignore_errors=True)
            shutil.copytree(tree, unpacked / FOLDER)
        elif (
            job.source is not None
            and job.source.is_dir()
            and not (job.source / ARCHIVE.filename).is_file()
        ):
            raise _not_in(job.source)
        else:
            # A zip packed anew has another MD5; the checksums of its members guard it as well.
            unpack(job, fetch(job, ARCHIVE, strict=False), unpacked)
        if (tree := _tree_in(unpacked)) is None:
            shutil.rmtree(job.staging)
            raise _not_in(job.source or job.root / ARCHIVE.filename)
        os.replace(tree, staged)
    for entry in sorted(staged.iterdir()):
        if (job.root / entry.name).exists():
            raise UserError(
                f"cannot put {entry.name} into {job.root}: it is there already. The root takes "
                f"the content of {FOLDER}. Move it away and run again: {job.again}"
            )
        os.rename(entry, job.root / entry.name)
    staged.rmdir()


def _arrange(job: Job, base: Path) -> None:
    val, train = base / "val", base / "train"
    annotations = val / ANNOTATIONS
    waiting = {
        entry.name: Path(entry.path)
        for folder in (val, val / "images")
        if folder.is_dir()
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES)
    }
    if not waiting and not annotations.is_file():
        return  # rearranged by another tool
    classes = {entry.name for entry in os.scandir(train) if entry.is_dir()}
    labels = read_annotations(annotations, classes)
    if strangers := sorted(set(waiting) - set(labels)):
        raise UserError(
            f"{len(strangers)} validation images have no class: {_some(strangers)} of {val}. "
            f"{annotations} names the class of each. Move them away and run again: {job.again}"
        )
    _check_arranged(job, val, labels, waiting)
    for label in sorted({labels[name] for name in waiting}):
        (val / label).mkdir(exist_ok=True)
    with progress_bar() as bar:
        for name in bar.track(sorted(waiting), description="val"):
            os.rename(waiting[name], val / labels[name] / name)
    images = val / "images"
    if images.is_dir():
        if left := sorted(entry.name for entry in images.iterdir()):
            raise UserError(
                f"files are left in {images}: {_some(left)}. Only images were expected there. "
                f"Move them away and run again: {job.again}"
            )
        images.rmdir()


def _check_arranged(job: Job, val: Path, labels: dict[str, str], waiting: dict[str, Path]) -> None:
    """Raises UserError, before anything moves, if an image is missing, twice or misplaced."""
    places: dict[str, list[str]] = {}
    for label in sorted(entry.name for entry in os.scandir(val) if entry.is_dir()):
        if label == "images":
            continue
        for folder in (val / label, val / label / "images"):
            if folder.is_dir():
                for entry in os.scandir(folder):
                    places.setdefault(entry.name, []).append(label)
    twice = sorted(set(waiting) & set(places))
    twice += [name for name in labels if len(places.get(name, [])) > 1]
    wrong = [n for n, label in labels.items() if n in places and places[n] != [label]]
    missing = [name for name in labels if name not in places and name not in waiting]
    for names, what in (
        (twice, "validation images are there twice"),
        (wrong, "validation images lie in the wrong class folder"),
        (missing, "validation images are missing"),
    ):
        if names:
            raise UserError(
                f"{len(names)} {what}: {_some(sorted(names))} in {val}. {val / ANNOTATIONS} lists "
                f"them once each. Put that right, or move {val.parent} away, and run again: "
                f"{job.again}"
            )


def _staged(job: Job) -> Path:
    return job.staging / FOLDER


def _is_tree(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _tree_in(folder: Path) -> Path | None:
    return next((f for f in (folder, folder / FOLDER) if _is_tree(f)), None)


def _not_in(source: Path) -> UserError:
    return UserError(
        f"no Tiny-ImageNet in {source}. It is {ARCHIVE.filename}, or the folder with its train "
        f"and val. Get it from {ARCHIVE.url}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
