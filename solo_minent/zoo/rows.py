"""`results/zoo-<data set>.csv`: a row for each trained run of the zoo, shipped or not."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from solo_minent.errors import UserError
from solo_minent.files import write_text
from solo_minent.schema import RunConfig
from solo_minent.zoo.schema import Entry

FOLDER = "results"
COLUMNS = (
    *("model", "seed", "method", "dataset", "backbone", "stem", "epochs", "batch"),
    *("knn", "linear", "online", "images", "dtype", "sha256", "recipe", "precision"),
    *("hours", "hardware", "commit", "date", "solo_minent", "torch"),
)


def row_of(entry: Entry, config: RunConfig, environment: dict[str, Any]) -> dict[str, str]:
    """A run as a row; what is not known is empty."""
    top1 = {m.evaluation: f"{m.top1:.2f}" for m in reversed(entry.metrics)}
    images = next((m.images for m in entry.metrics if m.images), "")
    packages = environment.get("packages") or {}
    known = entry.file.sha256.strip("0")
    values = {
        "model": entry.id,
        "backbone": config.backbone.name,
        "stem": config.backbone.stem,
        "batch": entry.batch_size,
        "knn": top1.get("knn"),
        "linear": top1.get("linear"),
        "online": top1.get("online"),
        "images": images,
        "dtype": entry.file.dtype if known else None,
        "sha256": entry.file.sha256 if known else None,
        "solo_minent": environment.get("solo_minent"),
        "torch": packages.get("torch"),
    }
    values |= {key: getattr(entry, key) for key in COLUMNS if key not in values}
    return {key: "" if values[key] is None else str(values[key]) for key in COLUMNS}


def write_row(zoo: Path, entry: Entry, config: RunConfig, environment: dict[str, Any]) -> None:
    """Puts a run into its table, in the place of an earlier row of the same model and seed.

    Raises:
        UserError: the table is damaged, or the disk is full.
    """
    path = zoo / FOLDER / f"zoo-{entry.dataset}.csv"
    new = row_of(entry, config, environment)
    rows = [r for r in read_rows(path) if (r["model"], r["seed"]) != (new["model"], new["seed"])]
    rows = sorted([*rows, new], key=lambda row: (row["model"], int(row["seed"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none if there is no such file.

    Raises:
        UserError: it has other columns.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() for row in rows):
        raise UserError(
            f"table of results is damaged: {path}. Its columns are {', '.join(COLUMNS)}. "
            "Restore the file."
        )
    return rows
