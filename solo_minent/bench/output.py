"""What a benchmark leaves: a table on the screen, a csv with versions and hardware."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from solo_minent.doctor import environment
from solo_minent.errors import UserError
from solo_minent.files import write_atomic

Row = Mapping[str, Any]


def print_rows(title: str, rows: Sequence[Row], caption: str = "") -> None:
    """Prints rows of the same columns as a table."""
    table = Table(title=title, caption=caption or None)
    for column in rows[0]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else figure(v) for v in row.values()))
    Console(width=200).print(table)


def figure(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_rows(csv: Path, rows: Sequence[Row], about: Row) -> None:
    """Writes rows, each with what is the same for all and with versions and hardware."""
    machine = _machine()
    # The columns in this order; `about` knows better what is in both.
    frame = pd.DataFrame([{**row, **about, **machine, **about} for row in rows])
    write_atomic(csv, lambda temporary: frame.to_csv(temporary, index=False))


def fingerprint(asked: Row) -> str:
    """Figures of one fingerprint belong together: the same code, machine, versions and settings.

    Args:
        asked: settings of a measurement.
    """
    package = Path(__file__).parents[1]
    found = hashlib.blake2s(digest_size=8)
    for file in sorted(file for kind in ("*.py", "*.yaml") for file in package.rglob(kind)):
        found.update(file.read_bytes())
    known = {**asked, **_machine()}
    del known["commit"]  # there may be none, and work on a dirty one goes on
    found.update(json.dumps(known, sort_keys=True, default=str).encode())
    return found.hexdigest()


def check_writable(file: Path) -> None:
    """Raises UserError if a file cannot be written: before a benchmark runs, not after it.

    Missing folders go away again: what is refused for another reason leaves none.
    """
    missing: list[Path] = []
    try:
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder")
        missing = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{file.name}.", dir=file.parent):
            pass
    except OSError as error:
        raise UserError(
            f"results cannot be written: {file} ({error.strerror or error}). A file in a folder "
            "that may be written is needed. Name another one."
        ) from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not made, or another process has put a file there
                folder.rmdir()


def _machine() -> dict[str, str]:
    """Versions and hardware."""
    found = {key: str(value) for key, value in environment().items()}
    del found["command"]  # it names folders of the machine
    return found | {"cpu": _cpu(), "threads": str(torch.get_num_threads())}


def _cpu() -> str:
    """The model of the processor, as Linux knows it."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
