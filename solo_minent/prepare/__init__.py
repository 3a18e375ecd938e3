"""Brings a data set into the layout that the loaders read, and checks that it is whole.

Downloads what may be downloaded, says what to do by hand otherwise. Work that was stopped goes on
when the same command runs again; a set that is there is checked only.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from solo_minent.errors import UserError
from solo_minent.prepare.archives import Job, check_room
from solo_minent.prepare.check import Row, check_counts, check_decodes, load_all
from solo_minent.prepare.lists import prepare_lists

if TYPE_CHECKING:
    from solo_minent.data.datasets import ImageSet

H5_NAMES = {"test": "val"}  # as the folders are called


@dataclass(frozen=True)
class Prepared:
    """Outcome.

    Attributes:
        dataset: for `data.dataset`.
        root: for `data.root`; None: no folder is needed.
        rows: what each split holds.
        decoded: every image was decoded.
        h5: files that were written.
        lists: SimCLR's file lists, for `data.file_list`.
    """

    dataset: str
    root: Path | None
    rows: list[Row]
    decoded: bool
    h5: list[Path]
    lists: list[Path] = field(default_factory=list)


def prepare(
    dataset: str,
    root: str | Path | None,
    source: str | Path | None = None,
    classes: str | Path | None = None,
    verify: bool = False,
    h5: bool = False,
    lists: bool = False,
) -> Prepared:
    """Makes a data set ready and checks it.

    Args:
        dataset: a name of `solo_minent.data.datasets.DATASETS`.
        root: folder that shall hold it; `digits` needs none.
        source: what there is of it already: an archive, a folder of archives, or a tree
            (imagenet100: the ImageNet tree to link into). It is never changed.
        classes: file with the class folders of imagenet100, instead of the standard list.
        verify: decode every image.
        h5: write train.h5 and val.h5 (STL-10: pretrain.h5, too) into the folder as well.
        lists: fetch SimCLR's lists of 1 % and 10 % of imagenet's training images as well.

    Raises:
        UserError: bad input, no network, a damaged archive, no space, a wrong layout or count, a
            corrupt image. The message says what to do.
    """
    job = _job(dataset, root, source, classes, h5, lists)
    try:
        place, names = _bring(job)
        file_lists = prepare_lists(job) if lists else []
        shutil.rmtree(job.staging, ignore_errors=True)  # archives that are not needed any more
        # A choice of another number of classes is no ImageNet-100 for the loaders.
        name = dataset if names is None or len(names) == 100 else "custom"
        splits = load_all(name, place)
        fix = f"Complete it, or move it away and run: {job.again}"
        rows = check_counts(dataset, splits, names, str(place or "scikit-learn"), fix)
        if verify:
            check_decodes(splits, f"Replace or remove them and run again: {job.again} --verify")
        files = _write_h5(job, splits, place) if h5 else []
    except OSError as error:
        raise UserError(
            f"cannot prepare {dataset}: {error}. {job.root} must be readable and writable and have "
            f"space. Mend that and run again: {job.again}"
        ) from error
    return Prepared(name, place, rows, verify, files, file_lists)


def print_prepared(prepared: Prepared) -> None:
    """The table of a set and what to do with it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("split", "images", "classes", "images a class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in prepared.rows:
        each = f"{row.smallest:,}"
        if row.largest != row.smallest:
            each += f" to {row.largest:,}"
        table.add_row(
            row.split, f"{row.images:,}", f"{row.classes:,}", each if row.classes else "unlabelled"
        )
    console = Console(soft_wrap=True)
    console.print(table)
    if prepared.decoded:
        print("every image decodes")
    for path in prepared.h5:
        print(f"written: {path}")
    for path in prepared.lists:
        print(f"for data.file_list: {path}")
    if prepared.root is None:
        print(f"{prepared.dataset} is ready: nothing to prepare")
    else:
        print(f"ready: data.dataset={prepared.dataset} data.root={prepared.root}")


def _job(
    dataset: str,
    root: str | Path | None,
    source: str | Path | None,
    classes: str | Path | None,
    h5: bool,
    lists: bool = False,
) -> Job:
    from solo_minent.data.datasets import check_dataset

    check_dataset(dataset)
    if root is None and (dataset != "digits" or h5):
        raise UserError(
            f"--root is not set: {dataset} needs a folder. It becomes data.root. "
            f"Run: solo-minent prepare {dataset} --root <folder>"
        )
    if source is not None and dataset in ("digits", "custom"):
        raise UserError(
            f"--from is not taken: {source}. {dataset} is used where it is. Leave --from away"
        )
    if classes is not None and dataset != "imagenet100":
        raise UserError(
            f"--classes is not taken: {classes}. Only imagenet100 is a choice of classes. "
            "Leave --classes away"
        )
    if lists and dataset != "imagenet":
        raise UserError(
            f"--lists is not taken: SimCLR's lists are of imagenet, not of {dataset}. An "
            "evaluation on other sets draws its own. Leave --lists away"
        )
    root = Path("." if root is None else root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise UserError(
            f"--root is not a folder: {root}. {dataset} is put into a folder. "
            "Give another one: --root <folder>"
        )
    paths = []
    for option, path in (("--from", source), ("--classes", classes)):
        path = None if path is None else Path(path).expanduser().absolute()
        if path is not None and not path.exists():
            raise UserError(
                f"{option} does not exist: {path}. It names what is on this machine. Correct it"
            )
        paths.append(path)
    return Job(dataset, root, *paths, lists)


def _bring(job: Job) -> tuple[Path | None, list[str] | None]:
    """Folder for `data.root`, and the classes that the set must have where they are known."""
    from solo_minent.prepare import imagenet, published, tiny_imagenet

    if job.dataset == "digits":
        return None, None
    if job.dataset == "custom":
        return job.root, None
    if job.dataset == "tiny_imagenet":
        return tiny_imagenet.prepare_tiny_imagenet(job), None
    if job.dataset == "imagenet":
        return imagenet.prepare_imagenet(job), None
    if job.dataset == "imagenet100":
        return imagenet.prepare_imagenet100(job), imagenet.class_list(job)
    return published.prepare_published(job), None


def _write_h5(job: Job, splits: dict[str, ImageSet], place: Path | None) -> list[Path]:
    """Writes the splits whose files are not there yet; returns what was written."""
    from solo_minent.data.h5 import H5Images, write_h5

    files = {(place or job.root) / f"{H5_NAMES.get(n, n)}.h5": splits[n] for n in splits}
    missing = {path: images for path, images in files.items() if not path.exists()}
    for path in files.keys() - missing.keys():
        there, images = H5Images(path), files[path]
        if there.classes != images.classes or not np.array_equal(there.targets, images.targets):
            raise UserError(
                f"another h5 file is there: {path}. It has {len(there)} images, the set "
                f"{len(images)}, or other labels. Move it away and run again: {job.again} --h5"
            )
    check_room(job, sum(_bytes(images) for images in missing.values()))
    for path, images in missing.items():
        write_h5(images, path)
    return list(missing)


def _bytes(images: ImageSet) -> int:
    """Size of the encoded images, or of the pixels where a set has no files."""
    if not images.has_files:
        width, height = images[0][0].size
        return 3 * width * height * len(images)
    return sum(os.path.getsize(images.name_of(index)) for index in range(len(images)))
