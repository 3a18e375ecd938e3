"""`results/zoo-<data set>.csv`: a row for each trained run of the zoo, shipped or not."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from solo_minent.config import BYSTANDERS, differences, load_run
from solo_minent.errors import UserError
from solo_minent.files import write_text
from solo_minent.schema import RunConfig
from solo_minent.zoo.index import find_model
from solo_minent.zoo.schema import Entry, Metric

FOLDER = "results"
# What may differ between the runs of a model's seeds.
APART = (*BYSTANDERS, "seed", "name")
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
    new = row_of(entry, config, environment)
    _write(zoo, entry, sorted([*_others(zoo, entry), new], key=_order))


def check_seed(zoo: Path, entry: Entry, config: RunConfig) -> None:
    """Checks that a run is a model's but for its seed: the numbers of both become one mean.

    Raises:
        UserError: there is no such model, or seed, configuration or protocol do not suit.
    """
    model = find_model(entry.id, zoo)
    if not model.ours:
        raise UserError(
            f"model is not ours: {model.id}. Further seeds are of a model that was trained here. "
            "Name another --id."
        )
    if model.seed == entry.seed:
        raise UserError(
            f"seed is that of the model: {entry.seed} of {model.id}. Its row is there; the seeds "
            "of a model are counted once. Train the same with another seed=…"
        )
    own = load_run((zoo / str(model.config)).parent)
    changed = differences(own, config, APART)
    if changed:
        raise UserError(
            f"run is not of the model's configuration: {model.id} -> this run, "
            f"{'; '.join(changed[:3])}{' …' if changed[3:] else ''}. Only the seed may differ. "
            "Add it as a model, under another --id."
        )
    for name in ("knn", "linear"):
        there, here = (_metric(metrics, name) for metrics in (model.metrics, entry.metrics))
        if (there.protocol, there.images) != (here.protocol, here.images):
            raise UserError(
                f"protocol of {name} is another than the model's: {here.protocol} of "
                f"{here.images} images. {model.id} has {there.protocol} of {there.images}. "
                f"Run solo-minent {name} by that."
            )


def remove_row(zoo: Path, entry: Entry) -> None:
    """Takes a run out of its table again, as far as the disk lets it."""
    with suppress(UserError, OSError):
        _write(zoo, entry, _others(zoo, entry))


def table_of(zoo: Path, dataset: str) -> Path:
    """Where the rows of a data set are."""
    return zoo / FOLDER / f"zoo-{dataset}.csv"


def _metric(metrics: list[Metric], name: str) -> Metric:
    return next(metric for metric in metrics if metric.evaluation == name)


def _others(zoo: Path, entry: Entry) -> list[dict[str, str]]:
    own = entry.id, str(entry.seed)
    rows = read_rows(table_of(zoo, entry.dataset))
    return [row for row in rows if (row["model"], row["seed"]) != own]


def _order(row: dict[str, str]) -> tuple[str, int]:
    return row["model"], int(row["seed"])


def _write(zoo: Path, entry: Entry, rows: list[dict[str, str]]) -> None:
    path = table_of(zoo, entry.dataset)
    if not rows:
        path.unlink(missing_ok=True)
        return
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
