"""Where files of the zoo lie on this machine: in the repository, or in a folder of downloads."""

from __future__ import annotations

import os
from pathlib import Path

from solo_minent.config import unwritable
from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.zoo.schema import FileEntry

VARIABLE = "SOLO_MINENT_CACHE"


def cache_folder() -> Path:
    """SOLO_MINENT_CACHE, or solo_minent in the user's folder of caches (XDG_CACHE_HOME)."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a path that is not absolute counts for nothing.
    caches = Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()
    return caches / "solo_minent"


def cached(file: FileEntry) -> Path:
    """Where a download of the file lies, or would: other bytes of that name lie apart."""
    return cache_folder() / "zoo" / file.sha256[:16] / file.name


def make_place(file: FileEntry) -> Path:
    """The folder for a download, made if it is not there.

    Raises:
        UserError: it can be neither made nor written.
    """
    folder = cached(file).parent
    reason = unwritable(folder)
    if reason is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        except OSError as error:
            reason = error.strerror or str(error)
    raise UserError(
        f"cache folder cannot be made: {folder}, {reason}. Downloads are kept there. "
        f"Set {VARIABLE} to a folder of your own."
    )


def difference(path: Path, file: FileEntry) -> str | None:
    """What tells a file on the disk from that of the index, in words; None if it is the same."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.bytes:
        return f"has {size:,} bytes, the index says {file.bytes:,}"
    found = sha256(path)
    if found != file.sha256:
        return f"has sha256 {found[:16]}…, the index says {file.sha256[:16]}…"
    return None


def in_repository(file: FileEntry, zoo: Path) -> list[Path]:
    """Where the file lies below the folder of the index, if it is there."""
    places = [zoo / url for url in file.urls if "://" not in url]
    return [place for place in places if place.is_file()]
