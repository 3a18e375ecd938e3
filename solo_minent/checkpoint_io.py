"""Checkpoints without pickle: each one is kept until the next one reads back."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from solo_minent.errors import UserError
from solo_minent.files import write_atomic


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints as `save_checkpoint` and `read_checkpoint` do it.

    `Trainer(plugins=[CheckpointFiles()])`; whatever the caller says, no pickle is loaded.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | str | torch.device | None = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path), mapped=False)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint; the one that is there stays until the new one reads back.

    Tensors are written from where they are, those of a GPU one by one: memory for the largest.

    Args:
        checkpoint: tensors and plain values.
        path: file; its folder is made.

    Raises:
        UserError: the checkpoint holds an object that needs pickle, the disk is full, or gives back
            other bytes than were written.
    """

    def write(temporary: Path) -> None:
        # Through a Python file: PyTorch's own writer does not say why the system refused.
        with open(temporary, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise _needs_pickle(path, error) from error  # not even pickle can

    def read_back(temporary: Path) -> None:
        damage = _damage(temporary)
        if damage:
            raise UserError(
                f"checkpoint does not read back: {path} ({damage}). The disk must give back the "
                "bytes that were written; the previous checkpoint is untouched. Check the disk, "
                "or choose another."
            )
        try:
            _load(temporary, mapped=True)
        except Exception as error:
            raise _needs_pickle(path, error) from error

    write_atomic(path, write, read_back)


def read_checkpoint(path: Path, mapped: bool = True, checksums: bool = True) -> dict[str, Any]:
    """Lightning's dict in a checkpoint, on the CPU; nothing that is in it is run.

    Args:
        path: file.
        mapped: leave the tensors in the file until they are used. It must not be changed then (a
            newer one may be renamed over it).
        checksums: read all bytes and compare theirs.

    Raises:
        UserError: the file is missing, cut, foreign, has other bytes than were written, or needs
            pickle.
    """
    if not path.is_file():
        raise UserError(
            f"checkpoint is missing: {path}. A file that this run saved was expected. Correct the "
            "path, or start the run again."
        )
    damage = _damage(path) if checksums else None
    if damage:
        raise _damaged(path, damage)
    try:
        checkpoint = _load(path, mapped)
    except (MemoryError, OSError):
        raise
    # Foreign bytes surface as whatever the reader tripped over.
    except Exception as error:
        wanted = _wanted(error)
        what = f"it needs pickle, for {wanted}" if wanted else type(error).__name__
        raise _damaged(path, what) from error
    if not isinstance(checkpoint, dict) or not {"epoch", "state_dict"} <= checkpoint.keys():
        raise _damaged(path, "it is no checkpoint of a training")
    return checkpoint


def _load(path: Path, mapped: bool) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _damage(path: Path) -> str | None:
    """What is wrong with the archive of a checkpoint: all of its bytes are read."""
    with open(path, "rb"):  # what may not be read is not damaged
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch packs without compression: what claims more than it has is a bomb.
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                return "it is packed"
            bad = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError):
        return "it is cut short, or another kind of file"
    except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:160]
    return None if bad is None else f"the checksum of {bad} is wrong"


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"checkpoint is damaged: {path} ({reason}). A file that this run saved was expected. "
        "Restore it, or delete it to start the run again."
    )


def _needs_pickle(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint needs pickle: {path} would hold {_wanted(error) or type(error).__name__}. "
        "A checkpoint holds tensors and plain values; the previous one is untouched. Take it out "
        "of the method's settings and state."
    )


def _wanted(error: Exception) -> str | None:
    """The name that `torch.load` refuses to import."""
    found = re.search(r"GLOBAL (\S*\w)\s|unrecognized function (.+)", str(error))
    return found and (found[1] or found[2])
