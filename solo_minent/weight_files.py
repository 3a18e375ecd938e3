"""Weight files of any origin: read whole or refused, and nothing that is in them is run."""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".tar")
# Notes that training scripts keep beside the weights: settings, paths, losses. They are skipped.
NOTES = (
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
)


def read_weight_file(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """What a `.safetensors`, `.ckpt`, `.pth`, `.pt` or `.tar` file holds.

    PyTorch's files are read with `weights_only=True`: tensors and plain values, no objects.

    Args:
        path: file; its tensors may be mapped from it, so it must stay as it is while they are used.

    Returns:
        Names to tensors or to nested dicts, and the metadata of a safetensors file.

    Raises:
        UserError: no such file, another format, a damaged file, or one that asks for code.
    """
    if not path.is_file():
        raise UserError(
            f"backbone weights are missing: {path}. A file that ends in {', '.join(SUFFIXES)} was "
            "expected. Correct the path."
        )
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"ending of a weight file is unknown: {path}. It is one of {', '.join(SUFFIXES)}. "
            "Rename the file as what it is."
        )
    with open(path, "rb") as file:
        head = file.read(512)
    _check_head(path, head)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        _check_archive(path)
    contents = _read_torch(path, zipped)
    if not hasattr(contents, "items"):
        _damaged(path, f"it holds a {type(contents).__name__}, no names and tensors")
    return contents, {}


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same contents: it can be known by its hash.

    Args:
        tensors: contiguous, on the CPU, by name.
        metadata: whose order the library itself leaves to chance.
    """
    from safetensors.torch import save

    data = save(tensors, metadata)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    return struct.pack("<Q", len(text)) + text + data[end:]


def _check_head(path: Path, head: bytes) -> None:
    start = head.lstrip().lower()
    if not head:
        _damaged(path, "it is empty")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        _damaged(path, "it is a web page, which some sites send in place of the file")
    if start.startswith(b"version https://git-lfs"):
        _damaged(path, "it is a pointer of Git LFS, git lfs pull fetches the file")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        _damaged(path, f"no whole safetensors file: {_short(error)}", error)


def _check_archive(path: Path) -> None:
    """PyTorch packs without compression: an archive that claims more than it has is no weights."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or claimed > size:
                _damaged(path, f"an archive of {size} bytes that unpacks to {claimed}")
            bad = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError) as error:
        _damaged(path, "it is cut short", error)
    except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
        _damaged(path, _short(error), error)
    if bad is not None:
        _damaged(path, f"the checksum of {bad} is wrong")


def _read_torch(path: Path, zipped: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins()):
            warnings.simplefilter("ignore")
            # Mapped: of a checkpoint with optimiser and teacher, the backbone alone is read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    # Broken bytes surface as whatever the reader tripped over.
    except Exception as error:
        # A name that ends in a dot is one that was cut off.
        asked = re.search(r"GLOBAL (\S*\w)\s|unrecognized function (.+)", str(error))
        if asked is None:
            _damaged(path, f"{type(error).__name__}: {_short(error)}", error)
        raise UserError(
            f"weights ask for code: {path} wants {asked.group(1) or asked.group(2)}. Tensors and "
            "plain values are read, nothing is run. Save the weights alone, with "
            "torch.save(model.state_dict(), …), if you trust where the file is from."
        ) from error


@cache
def _stand_ins() -> list[type]:
    """Empty classes under the names of `NOTES`, so that none of the real ones is made."""

    def ignore(self: object, *_: object, **__: object) -> None:
        pass

    members = {"__init__": ignore, "__setstate__": ignore}
    members["__new__"] = lambda cls, *_, **__: object.__new__(cls)
    return [type(name, (), {**members, "__module__": module}) for module, name in NOTES]


def _short(error: BaseException) -> str:
    """The first sentence of an exception."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=\w)\. ", text)[0][:160]


def _damaged(path: Path, reason: str, error: BaseException | None = None) -> NoReturn:
    raise UserError(
        f"backbone weights are damaged: {os.fspath(path)} ({reason}). A whole weight file was "
        "expected. Download or export the file again."
    ) from error
