"""Archives are fetched whole or not at all, and unpacked beside their place."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

from solo_minent.errors import UserError

STALL = 60  # seconds without a byte after which a server is given up
MOST_PACKED = 20  # times its bytes that a zip file may unpack to: photographs give 1 to 2


@dataclass(frozen=True)
class Archive:
    """What is published: address, file name, MD5, bytes as an archive and unpacked."""

    url: str
    filename: str
    md5: str
    size: int
    unpacked: int


@dataclass(frozen=True)
class Job:
    """One call of prepare.

    Attributes:
        dataset: its name.
        root: where the set shall lie, absolute.
        source: what the user has of it already: an archive, a folder with archives or a tree.
        classes: a class list of the user's own.
        lists: SimCLR's file lists are wanted as well.
    """

    dataset: str
    root: Path
    source: Path | None = None
    classes: Path | None = None
    lists: bool = False

    @property
    def staging(self) -> Path:
        """Where everything unfinished lies; in the root, so that a rename finishes it."""
        return self.root / f".prepare-{self.dataset}"

    def place(self, *names: str) -> Path:
        """The first of the root and its folders of those names that holds a train folder.

        It is the root where none does. The loaders look in the same places.
        """
        places = [self.root, *(self.root / name for name in (self.dataset, *names))]
        return next((place for place in places if (place / "train").is_dir()), self.root)

    @property
    def again(self) -> str:
        """The command that the user ran."""
        words = ["solo-minent", "prepare", self.dataset, "--root", str(self.root)]
        words += ["--from", str(self.source)] if self.source else []
        words += ["--classes", str(self.classes)] if self.classes else []
        words += ["--lists"] if self.lists else []
        return shlex.join(words)

    def say(self, text: str) -> None:
        """Tells what is being done, beside the result."""
        print(text, file=sys.stderr)


def check_room(job: Job, needed: int) -> None:
    """Raises UserError unless the root is a writable folder, or can be made, with `needed` bytes.

    Nothing is created.
    """
    place = job.root
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(
            f"--root is not a folder: {place}. {job.dataset} is put into a folder. "
            "Give another one: --root <folder>"
        )
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {place}: {error.strerror or error}. {job.dataset} is put there. "
            "Make it writable, or give another folder: --root <folder>"
        ) from error
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"too little space in {place}: {_gib(free)} are free. {job.dataset} needs "
            f"{_gib(needed)} while it is unpacked. Free some, or give another folder: "
            "--root <folder>"
        )


def fetch(job: Job, archive: Archive, strict: bool = True) -> Path:
    """Path of the whole archive: the user's, one that lies in the root, or a downloaded one.

    strict: check the MD5 of an archive that the user brought, too.

    Raises UserError if it is damaged or cannot be had; then nothing is left behind.
    """
    from torchvision.datasets.utils import check_integrity

    mine = job.root / archive.filename
    if job.source is not None:
        mine = job.source / archive.filename if job.source.is_dir() else job.source
        if not mine.is_file():
            raise UserError(
                f"archive is not there: {mine}. --from takes {archive.filename} or the folder "
                f"that holds it. {by_hand(job, archive)}"
            )
    if mine.is_file():
        if strict and not check_integrity(mine, archive.md5):
            raise UserError(
                f"archive is damaged: {mine}. Its MD5 must be {archive.md5}. Remove it. "
                f"{by_hand(job, archive)}"
            )
        return mine
    job.staging.mkdir(parents=True, exist_ok=True)
    download = job.staging / archive.filename
    whole = False
    try:
        job.say(f"downloading {archive.url} ({_gib(archive.size)})")
        _download(job, archive)
        whole = True
    finally:
        if not whole:  # also after Ctrl-C: torchvision does not continue half a file
            download.unlink(missing_ok=True)
            _remove_empty(job.staging)
    return download


def by_hand(job: Job, archive: Archive) -> str:
    """What to do where nothing can be downloaded."""
    return (
        f"Download {archive.url} elsewhere, put it at {job.root / archive.filename} and run "
        f"again: {replace(job, source=None).again}"
    )


def unpack(job: Job, archive: Path, folder: Path) -> None:
    """Unpacks an archive into an empty folder of the staging area.

    Raises UserError if it is no whole archive, or holds what is no file below that folder.
    """
    from torchvision.datasets.utils import extract_archive

    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    job.say(f"unpacking {archive}")
    try:
        _check_zip(job, archive)
        with safe_tar():
            extract_archive(str(archive), str(folder))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        shutil.rmtree(folder)
        _remove_empty(job.staging)
        raise UserError(
            f"cannot unpack {archive}: {error}. It must be a whole .zip or .tar.gz file. "
            "Get it again"
        ) from error


def _check_zip(job: Job, archive: Path) -> None:
    """Looks through a zip file's list before anything of it is written; another archive passes.

    zipfile would write a member that leaves the folder somewhere in it, and a link as a file.

    Raises:
        zipfile.BadZipFile: a member is no file or folder below the archive's, or all of them are
            too large for it.
        UserError: they are too large for the disk.
    """
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
    seen = set()
    for member in members:
        name = member.orig_filename  # `filename` ends at a NUL
        parts = name.split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if name.startswith("/") or ".." in parts or not name.isprintable() or "\\" in name:
            raise zipfile.BadZipFile(f"a member's name is no path below it: {name[:80]!r}")
        if ":" in parts[0] or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise zipfile.BadZipFile(f"a member is no file: {name[:80]!r}")
        if name in seen:
            raise zipfile.BadZipFile(f"a member is there twice: {name[:80]!r}")
        seen.add(name)
    unpacked = sum(member.file_size for member in members)
    if unpacked > MOST_PACKED * archive.stat().st_size + (1 << 20):
        raise zipfile.BadZipFile(f"{archive.stat().st_size} bytes would unpack to {unpacked}")
    check_room(job, unpacked)


@contextmanager
def safe_tar() -> Iterator[None]:
    """Within it, nothing of a tar file may land outside its folder, whoever unpacks it."""
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    # Since Python 3.10.12 and 3.11.4; before, the MD5 that every tar file here has must do.
    data_filter = getattr(tarfile, "data_filter", None)
    tarfile.TarFile.extraction_filter = data_filter and staticmethod(data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _download(job: Job, archive: Archive) -> None:
    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)  # urllib waits for ever
    try:
        download_url(archive.url, job.staging, archive.filename, archive.md5)
    except RuntimeError as error:  # torchvision's word for a wrong MD5
        raise UserError(
            f"download is damaged: {archive.url}. Its MD5 is not {archive.md5}. Run again, or: "
            f"{by_hand(job, archive)}"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"cannot download {archive.url}: {error}. This machine must reach it. "
            f"{by_hand(job, archive)}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 26 else f"{size / 2**20:.1f} MiB"
