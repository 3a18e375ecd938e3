"""ImageNet from its archives (torchvision unpacks them) and ImageNet-100 as links into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from solo_minent.errors import UserError
from solo_minent.prepare.archives import Job, check_room, safe_tar

STANDARD = Path(__file__).parent.parent / "data" / "class_lists" / "imagenet100.txt"
SPLITS = ("train", "val")
PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


def prepare_imagenet(job: Job) -> Path:
    """Unpacks the archives of ILSVRC 2012 split by split; a split that is there is kept.

    Returns:
        Folder for `data.root`.
    """
    from torchvision.datasets import imagenet

    root = job.place()
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    flat = [p for p in (root / "val").glob("ILSVRC2012_val_*.JPEG")]
    if not missing and not flat:
        job.say(f"imagenet is there: {root}")
        return root
    folder = job.source or root
    if job.source is not None and all((folder / split).is_dir() for split in SPLITS):
        raise UserError(
            f"--from is an unpacked tree already: {folder}. It is used where it lies. Check it "
            f"with: solo-minent prepare imagenet --root {folder}"
        )
    # The class of a validation image is in the development kit only.
    needed = [*missing, *(["devkit"] if "val" in missing or flat else [])]
    archives = {kind: folder / imagenet.ARCHIVE_META[kind][0] for kind in needed}
    if absent := [str(path) for path in archives.values() if not path.is_file()]:
        raise UserError(
            f"imagenet is not there: {', '.join(absent)}. Its licence allows no download by "
            f"others: register at {PAGE}, download "
            f"{', '.join(imagenet.ARCHIVE_META[kind][0] for kind in needed)} into one folder. "
            f"Then: solo-minent prepare imagenet --root {job.root} --from <that folder>"
        )
    # Images fill whole blocks of the disk: some per cent more than in the archive.
    check_room(job, int(1.05 * sum(archives[split].stat().st_size for split in missing)))
    job.staging.mkdir(parents=True, exist_ok=True)
    if flat:
        _parse(job, archives, "devkit")
        _sort(flat, imagenet.load_meta_file(job.staging)[1])
    for split in sorted(missing, reverse=True):  # the small one first
        # torchvision cannot continue a half unpacked split; the archive is still there.
        shutil.rmtree(job.staging / split, ignore_errors=True)
        job.say(f"checking and unpacking {archives[split]}")
        for kind in ("devkit", "val") if split == "val" else ("train",):
            _parse(job, archives, kind)
        os.replace(job.staging / split, root / split)
    return root


def prepare_imagenet100(job: Job) -> Path:
    """Links the class folders of an ImageNet tree; nothing is copied, right links are kept.

    Returns:
        Folder for `data.root`.
    """
    classes = class_list(job)
    check_room(job, 0)
    if job.source is None:
        root = job.place()
        if all((root / split).is_dir() for split in SPLITS):
            return root
        raise UserError(
            f"imagenet100 needs an ImageNet tree: --from is not set. It holds train/<class> and "
            f"val/<class>; solo-minent prepare imagenet makes one. Run: {job.again} --from "
            "<ImageNet folder>"
        )
    links = {
        job.root / split / name: (job.source / split / name).absolute()
        for split in SPLITS
        for name in classes
    }
    _check_source(job, list(links.values()), len(classes))
    _check_links(job, links)
    for split in SPLITS:
        (job.root / split).mkdir(parents=True, exist_ok=True)
    for link, target in links.items():
        if not link.is_symlink():
            os.symlink(target, link, target_is_directory=True)
    return job.root


def class_list(job: Job) -> list[str]:
    """Class names of ImageNet-100 or of the user's own list: one a line, `#` starts a comment.

    Raises UserError if it cannot be read, is empty, or has a name twice or one that is a path.
    """
    path = job.classes or STANDARD
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the class list: {path} ({error}). It has one class folder a line. "
            "Give another: --classes <file>"
        ) from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    paths = [name for name in names if name != Path(name).name or name == ".."]
    twice = sorted({name for name in names if names.count(name) > 1})
    if paths or twice or not names:
        what = (paths or twice or ["no class"])[0]
        raise UserError(
            f"class list is wrong: {what} in {path}. It has each class folder once, one a line, "
            "such as n01558993. Mend it, or give another: --classes <file>"
        )
    return names


def _parse(job: Job, archives: dict[str, Path], kind: str) -> None:
    """One of torchvision's parsers, from the archive where it lies into the staging area."""
    from torchvision.datasets import imagenet

    parse = getattr(imagenet, f"parse_{kind}_archive")
    try:
        with safe_tar():
            parse(job.staging, str(archives[kind]))  # joined to an absolute path, the folder drops
    except RuntimeError as error:  # torchvision's word for a wrong MD5
        shutil.rmtree(job.staging)
        raise UserError(
            f"archive is damaged: {archives[kind]}. Its MD5 must be "
            f"{imagenet.ARCHIVE_META[kind][1]}. Download it again, then run: {job.again}"
        ) from error


def _sort(flat: list[Path], labels: list[str]) -> None:
    """Moves validation images, numbered from 1, into the folders of their classes."""
    targets = {}
    for path in flat:
        number = path.stem.rpartition("_")[2]
        if not number.isdigit() or not 1 <= int(number) <= len(labels):
            raise UserError(
                f"no validation image has that number: {path}. They are numbered from 1 to "
                f"{len(labels)}. Move it away"
            )
        targets[path] = path.parent / labels[int(number) - 1] / path.name
    if twice := [target for target in targets.values() if os.path.lexists(target)]:
        raise UserError(
            f"a validation image is there twice: {twice[0]}. It lies in {flat[0].parent} as well. "
            "Remove one of them"
        )
    for path, target in targets.items():
        target.parent.mkdir(exist_ok=True)
        os.rename(path, target)


def _check_source(job: Job, targets: list[Path], count: int) -> None:
    missing = [target for target in targets if not target.is_dir()]
    if not missing:
        return
    for split in SPLITS:
        folder = job.source / split
        if not folder.is_dir():
            raise UserError(
                f"--from is no ImageNet tree: {folder} is not there. It holds train/<class> and "
                "val/<class>. Give the folder above train: --from <ImageNet folder>"
            )
        if not any(entry.is_dir() for entry in os.scandir(folder)):
            raise UserError(
                f"--from has no class folders: {folder}. Its images are not sorted by class yet. "
                "Unpack the archives with: solo-minent prepare imagenet"
            )
    names = ", ".join(str(path) for path in missing[:3])
    raise UserError(
        f"{len(missing)} of {2 * count} class folders are not in --from: {names}. All classes of "
        f"{job.classes or 'ImageNet-100'} are needed in train and val. Give a whole ImageNet tree"
    )


def _check_links(job: Job, links: dict[Path, Path]) -> None:
    wrong = [
        link
        for link, target in links.items()
        if os.path.lexists(link)
        and not (link.is_symlink() and os.path.realpath(link) == os.path.realpath(target))
    ]
    for split in SPLITS:
        folder = job.root / split
        if folder.is_dir():
            wrong += [p for p in sorted(folder.iterdir()) if p.is_dir() and p not in links]
    if wrong:
        names = ", ".join(str(path) for path in wrong[:3])
        raise UserError(
            f"{len(wrong)} other files or links are in the way: {names}. Only links into "
            f"{job.source} may be there. Move them away, or give an empty folder: --root <folder>"
        )
