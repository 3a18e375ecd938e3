"""Files that are written whole or not at all, and a full disk in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from solo_minent.errors import UserError

# No room on the device, in the user's quota, under the limit of a file's size (ulimit -f).
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Setting it is the only way to learn it, and another thread may write a file meanwhile: done once.
UMASK = os.umask(0o077)
os.umask(UMASK)
STALE = 24 * 3600  # seconds after which nobody fills a temporary file any more


def write_atomic(
    path: Path,
    write: Callable[[Path], object],
    read_back: Callable[[Path], object] | None = None,
) -> None:
    """Has `write` fill a temporary file next to `path`, makes it durable and renames it.

    A process killed at any moment leaves the old file or the new one, both whole. What it leaves
    beside them is removed by the next write of the same name.

    Args:
        path: final name; its folder is made.
        write: called with the temporary path; it fills this one file.
        read_back: called with the temporary path when its bytes are on the disk; where it raises,
            the old file stays.

    Raises:
        UserError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{place()}.{os.getpid()}.tmp")
    try:
        with _full_disk_named(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path, temporary)
            write(temporary)
            # Some writers leave their files to the owner alone; a run folder is shared.
            with suppress(PermissionError):  # file systems without such rights
                temporary.chmod(0o666 & ~UMASK)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
                if read_back is not None and hasattr(os, "posix_fadvise"):
                    # What is read back comes from the disk, not from memory.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if read_back is not None:
                read_back(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        UserError: the disk is full, or gives back other bytes than were written.
    """
    # A file name that is no UTF-8 keeps its bytes.
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: the disk is full, or gives back other bytes than were written.
    """

    def read_back(temporary: Path) -> None:
        wanted = memoryview(data)
        with open(temporary, "rb") as file:
            while piece := file.read(1 << 20):
                if piece != wanted[: len(piece)]:
                    break
                wanted = wanted[len(piece) :]
        if piece or wanted:
            raise UserError(
                f"file does not read back: {path}. The disk must give back the bytes that were "
                "written; what was there before is untouched. Check the disk, or choose another."
            )

    write_atomic(path, lambda temporary: temporary.write_bytes(data), read_back)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all.

    Raises:
        UserError: the disk is full, or gives back other bytes than were written.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file that one process at a time can hold, on systems that have such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "a", opener=no_link) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def no_link(path: str, flags: int) -> int:
    """For `open`: a file of this very name. A run folder of somebody else may link it elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def place() -> str:
    """Where the number of a process names one process: a host, or a container on it."""
    with suppress(OSError):
        return _digest(f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}")
    return _digest(socket.gethostname())


def full_disk(error: BaseException) -> OSError | None:
    """The system's word for a full disk, quota or file size limit behind an exception, if any.

    PyTorch raises a RuntimeError of its own while it handles the system's; HDF5 and safetensors
    put the number of the error into their text.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return seen
        number = re.search(r"\((?:os error|errno =) (\d+)\)|\berrno = (\d+)", str(seen))
        number = number and int(number[1] or number[2])
        if number in FULL:
            return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
    return None


def full_disk_error(
    error: OSError, path: str | Path, size: int = 0, kept: bool = False
) -> UserError:
    """What to tell of a full disk.

    Args:
        error: of `full_disk`.
        path: what was written.
        size: bytes that were written before it was full.
        kept: whether a file of that name was there before.
    """
    needs = f"needs more than {size:,} bytes" if size else "needs space"
    return UserError(
        f"disk is full: {path} {needs} ({os.strerror(error.errno)}). "
        f"{'The previous file is untouched. ' if kept else ''}Free space (or raise the quota, or "
        "ulimit -f), then start the same command again: it continues."
    )


@contextmanager
def _full_disk_named(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = full_disk(error)
        if full is None:
            raise
        size = temporary.stat().st_size if temporary.is_file() else 0
        raise full_disk_error(full, path, size, kept=path.exists()) from error


def _digest(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()


def _remove_stale(path: Path, temporary: Path) -> None:
    """Removes what killed writers of the same name left in the folder.

    Folders are shared by hosts and containers: the number of a process says something where it was
    given only. What others left goes when nobody can be filling it any more.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?:([0-9a-f]{{8}})\.)?(\d+)\.tmp")
    with os.scandir(path.parent) as entries:
        found = [(entry, match) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for entry, match in found:
        with suppress(OSError):  # another user's, or another process was faster
            status = entry.stat(follow_symlinks=False)
            mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
            dead = match[1] == place() and not _alive(int(match[2]))
            old = time.time() - status.st_mtime > STALE
            if mine and (entry.name == temporary.name or dead or old):
                os.unlink(entry.path)


def _alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, where folders can be synchronised (Windows' and some NFS' cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
