"""CIFAR-10, CIFAR-100 and STL-10: published as one archive each, read by torchvision."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.prepare.archives import Archive, Job, check_room, fetch, unpack

# Bytes of archive and content. CIFAR: 60,000 records of 3,072 pixels and 1 or 2 labels; STL-10:
# 113,000 images of 96 x 96 x 3.
SIZES = {
    "cifar10": (170_498_071, 60_000 * 3073),
    "cifar100": (169_001_437, 60_000 * 3074),
    "stl10": (2_640_397_119, 113_000 * 96 * 96 * 3),
}
# CIFAR is published as pickles, which run code where they are read, and torchvision knows its
# archives by their MD5. This is the SHA-256 of the archives of that MD5, as Keras has it
# (keras/src/datasets/cifar10.py and cifar100.py).
SHA256 = {
    "c58f30108f718f92721af3b95e74349a": (
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    ),
    "eb9058c3a382ffc7106e4002c42a8d85": (
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    ),
}


def prepare_published(job: Job) -> Path:
    """Downloads and unpacks the set unless it is whole; files whose MD5 is wrong are replaced.

    Returns:
        Folder for `data.root`.
    """
    kind = _kind(job.dataset)
    place = _place(job, kind)
    folder = place / kind.base_folder
    wrong = damaged(folder, kind)
    if not wrong:
        job.say(f"{job.dataset} is there and whole: {folder}")
        return place
    archive = Archive(kind.url, kind.filename, kind.tgz_md5, *SIZES[job.dataset])
    check_room(job, archive.size + archive.unpacked)
    unpacked = job.staging / "unpacked"
    path = fetch(job, archive)
    _check_sha256(job, archive, path)
    unpack(job, path, unpacked)
    new = unpacked / kind.base_folder
    if missing := damaged(new, kind):
        shutil.rmtree(unpacked)
        raise UserError(
            f"archive does not hold {job.dataset}: {', '.join(missing)} missing or damaged in it. "
            f"It is {kind.filename} of {kind.url}. Remove it and run again: {job.again}"
        )
    if not folder.exists():
        os.replace(new, folder)
    else:
        for name in wrong:
            os.replace(new / name, folder / name)
    return place


def _check_sha256(job: Job, archive: Archive, path: Path) -> None:
    """Raises UserError, and removes a download, if an archive is not the one of that MD5."""
    wanted = SHA256.get(archive.md5)
    if wanted is None or sha256(path) == wanted:
        return
    if job.staging in path.parents:
        path.unlink()
    raise UserError(
        f"archive is another one: {path}. Its MD5 is right, but its SHA-256 must be {wanted}. "
        f"Remove it and run again: {job.again}"
    )


def damaged(folder: Path, kind: Any) -> list[str]:
    """Names of the files of a torchvision data set that are missing or have a wrong MD5."""
    from torchvision.datasets.utils import check_integrity

    files = [*kind.train_list, *kind.test_list]
    if hasattr(kind, "meta"):
        files.append((kind.meta["filename"], kind.meta["md5"]))
    else:  # STL-10's class names have no published MD5
        files.append((kind.class_names_file, None))
    return [name for name, md5 in files if not check_integrity(folder / name, md5)]


def _kind(dataset: str) -> Any:
    from torchvision import datasets

    return {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "stl10": datasets.STL10,
    }[dataset]


def _place(job: Job, kind: Any) -> Path:
    """Where the loaders would find it already, else the root."""
    places = [job.root, job.root / job.dataset]
    if job.root.name == kind.base_folder:
        places = [job.root.parent]
    return next((p for p in places if (p / kind.base_folder).is_dir()), places[0])
