"""The folder of a run: who works in it, and whether what it holds can go on."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from solo_minent.checkpoint import BACKBONE_FILE, CHECKPOINT_FILE
from solo_minent.checkpoint_io import read_checkpoint
from solo_minent.config import ELSEWHERE, differences, from_dict, load_run
from solo_minent.errors import UserError
from solo_minent.files import no_link
from solo_minent.machine import is_first_process
from solo_minent.schema import RunConfig

LOCK_FILE = ".lock"
IN_USE = (errno.EACCES, errno.EAGAIN)  # what POSIX has for a lock that is held
ENTRY = "solo_minent"  # ours in a checkpoint


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        path: of the checkpoint.
        step: optimiser steps done.
        epochs: whole epochs done.
        changed: what the run's configuration changes, as `key: old -> new`.
    """

    path: Path
    step: int
    epochs: int
    changed: tuple[str, ...] = ()


def resume_point(
    config: RunConfig, resume_from: Path | None = None, checksums: bool = True
) -> ResumePoint | None:
    """Where the run of a folder goes on; None for a fresh start.

    The folder's own checkpoint, if it is of the same configuration: all of it, but for where the
    folder lies and for what only the evaluations after the run look at. Another configuration, or
    another checkpoint, has to be asked for.

    Args:
        config: of the run.
        resume_from: a run folder or its checkpoint, whose configuration may differ.
        checksums: read all bytes of the checkpoint and compare theirs.

    Raises:
        UserError: the folder holds another run, a checkpoint is missing or damaged, or has nothing
            left to train.
    """
    own = config.run_dir / CHECKPOINT_FILE
    source = None if resume_from is None else _checkpoint_of(resume_from)
    changed = _differs_from_folder(config)
    if own.is_file():
        point = _read(own, config, checksums)
        changed = list(point.changed) or changed
        if not changed:
            return point
    asked = source is not None and source.resolve() == own.resolve()
    if changed and not asked:
        raise UserError(
            f"run folder holds another run: {config.run_dir}, which differs in "
            f"{'; '.join(changed)}. A run continues only with the same configuration. Choose "
            f"another name=…, delete the folder, or go on from it with --resume-from {own}"
        )
    if source is None:
        return None
    point = _read(source, config, checksums)
    if point.changed and point.epochs >= config.max_epochs:
        raise UserError(
            f"nothing is left to train: {source} has {point.epochs} epochs, max_epochs="
            f"{config.max_epochs}. A run goes on beyond its checkpoint. Set "
            f"max_epochs={point.epochs + 1} or more, or leave out --resume-from."
        )
    return point


def _differs_from_folder(config: RunConfig) -> list[str]:
    """What differs from the configuration of a folder that has trained something."""
    files = (CHECKPOINT_FILE, BACKBONE_FILE)
    if not any((config.run_dir / file).is_file() for file in files):
        return []
    return differences(load_run(config.run_dir), config, ELSEWHERE)


def _checkpoint_of(path: Path) -> Path:
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"checkpoint to go on from is missing: {file}. A run folder with "
            f"{CHECKPOINT_FILE}, or such a file, was expected. Correct --resume-from."
        )
    return file


def _read(path: Path, config: RunConfig, checksums: bool) -> ResumePoint:
    checkpoint = read_checkpoint(path, checksums=checksums)
    try:
        old = dict(checkpoint[ENTRY]["config"])
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        step = checkpoint["global_step"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint is of no run of ours: {path}. solo-minent pretrain writes its "
            "configuration into it. Name another file, or start a new run with another name=…"
        ) from error
    changed = differences(from_dict(old, f"checkpoint {path}"), config, ELSEWHERE)
    return ResumePoint(path, step, epochs, tuple(changed))


def check_fits(point: ResumePoint, state: Mapping[str, Tensor]) -> None:
    """Checks that the changed configuration of a run can take up the state of a checkpoint.

    Args:
        point: where the run goes on.
        state: of the module that shall take it up.

    Raises:
        UserError: networks or optimiser differ.
    """
    if not point.changed:
        return
    there = read_checkpoint(point.path, checksums=False)["state_dict"]
    names = sorted(there.keys() | state.keys())
    shapes = [[_shape(tensors.get(name)) for name in names] for tensors in (there, state)]
    differ = [name for name, old, new in zip(names, *shapes, strict=True) if old != new]
    optimizer = [line for line in point.changed if line.startswith("optimizer.name")]
    if differ or optimizer:
        what = optimizer[0] if optimizer else f"{len(differ)} tensors differ, first {differ[0]}"
        raise UserError(
            f"checkpoint does not fit: {point.path}, {what}. The run changes "
            f"{'; '.join(point.changed)}. Networks and optimiser must be those of the checkpoint. "
            "Leave out what changes them, or start a run of its own without --resume-from."
        )


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def entry(config: RunConfig, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Our part of a checkpoint: the configuration, and the states of the processes."""
    return {ENTRY: {"config": asdict(config), "ranks": ranks}}


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Holds the folder, which is made, for this run: its first process and no other one.

    A lock of the process itself (POSIX), which ends with it however it ends: loader processes,
    which may outlive a killed run for seconds, do not inherit it.

    Where the file system has no locks the run goes on without, and says so.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    if not is_first_process():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK_FILE, "a+", opener=no_link) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in IN_USE:
                file.seek(0)
                raise UserError(
                    f"run folder is in use: {run_dir}, by {_holder(file.read())}. One process "
                    "trains a run. Wait for it or stop it, or choose another name=…"
                ) from error
            print(
                f"this file system has no locks: {run_dir}. Start one process a run.",
                file=sys.stderr,
                flush=True,
            )
        else:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
        yield


def _holder(content: str) -> str:
    try:
        found = json.loads(content)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
