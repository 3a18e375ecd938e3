"""Results of several runs: side by side as a table, and flat as csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo_minent.files import write_atomic
from solo_minent.report.collect import Run

BASELINES = {"pixels": "raw pixels", "random": "untrained backbone"}
EVALUATIONS = ("linear", "knn", "few_shot")  # come first
KEYS = ("run", "method", "dataset", "target", "evaluation", "protocol")
# Besides metrics and split sizes; the origin of the weights is a path of one machine.
NO_METRICS = {*KEYS, "seed", "weights", "checkpoint_sha256", "date", "versions"}
SHOWN_SHA = 8


@dataclass(frozen=True)
class Number:
    """One result as a cell of the table shows it.

    Attributes:
        value: the first metric, `99.16` or `90.50 ± 2.13`.
        others: the further metrics, `top5 100.00`.
        facts: checkpoint, seed and date, split sizes.
        stale: it was measured on other weights than the run's folder has now.
        runs: labels of the runs that it belongs to, where a column holds several.
    """

    value: str
    others: str
    facts: list[str]
    sha256: str | None
    stale: bool
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One evaluation under one protocol: the numbers of each column of the table."""

    evaluation: str
    dataset: str
    protocol: str
    metric: str
    cells: list[list[Number]]


@dataclass(frozen=True)
class Table:
    """columns: labels, those of runs first; runs: how many of them are runs."""

    columns: list[str]
    runs: int
    rows: list[Row]


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result: its numbers between protocol and data set, where they are stored."""
    before = list(result)[: list(result).index("dataset")]
    return {key: result[key] for key in before if key not in NO_METRICS and _is_number(result[key])}


def splits_of(result: dict[str, Any]) -> dict[str, int]:
    """Images of each split that a result used."""
    return {
        key.removesuffix("_images"): value
        for key, value in result.items()
        if key.endswith("_images") and _is_number(value)
    }


def table(runs: list[Run]) -> Table:
    """Results side by side: a column a run, then one a baseline.

    A baseline belongs to a run (its backbone, its normalisation); equal numbers of several runs
    are shown once.
    """
    found = [(run, result) for run in runs for result in run.results]
    targets = {result["target"] for _, result in found} - {"trained"}
    others = [name for name in BASELINES if name in targets] + sorted(targets - set(BASELINES))
    rows: dict[tuple[str, ...], Row] = {}
    for run, result in found:
        key = tuple(result[name] for name in ("evaluation", "dataset", "protocol"))
        metric = next(iter(metrics_of(result)), "")
        row = rows.setdefault(key, Row(*key, metric, [[] for _ in [*runs, *others]]))
        if result["target"] == "trained":
            row.cells[runs.index(run)].append(_number(run, result))
        else:
            _add(row.cells[len(runs) + others.index(result["target"])], run, result)
    order = sorted(rows.values(), key=_place)
    columns = [run.label for run in runs] + [BASELINES.get(name, name) for name in others]
    return Table(columns, len(runs), order)


def write_csv(path: Path, runs: list[Run]) -> None:
    """All results of the runs, one row each, in an order that does not depend on that of the runs.

    Columns: run (data set, method and name), method, dataset (evaluated on), target, evaluation,
    protocol, the metrics, `<split>_images`, further numbers and words, seed, date,
    checkpoint_sha256, `version_<package>`. Lists are left out.
    """
    rows = [_flat(run, result) for run in runs for result in run.results]
    rows.sort(key=lambda row: [str(row[key]) for key in KEYS])
    metrics = _names(metrics_of(r) for run in runs for r in run.results)
    tail = ["seed", "date", "checkpoint_sha256"]
    every = _names(rows)
    versions = [key for key in every if key.startswith("version_")]
    splits = [key for key in every if key.endswith("_images")]
    listed = {*KEYS, *metrics, *splits, *tail, *versions}
    columns = [*KEYS, *metrics, *splits, *(k for k in every if k not in listed), *tail, *versions]

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)


def _flat(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    c = run.config
    scalars = {
        key: value
        for key, value in result.items()
        if key not in ("weights", "versions") and not isinstance(value, (list, dict))
    }
    versions = result.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return {
        **scalars,
        "run": f"{c.data.dataset}/{c.method}/{c.name}",
        "method": c.method,
        **{f"version_{package}": number for package, number in versions.items()},
    }


def _names(dicts: Iterable[dict[str, Any]]) -> list[str]:
    return sorted({key for each in dicts for key in each})


def _add(cell: list[Number], run: Run, result: dict[str, Any]) -> None:
    new = _number(run, result)
    for number in cell:
        if (number.value, number.others, number.facts) == (new.value, new.others, new.facts):
            number.runs.append(run.label)
            return
    new.runs.append(run.label)
    cell.append(new)


def _number(run: Run, result: dict[str, Any]) -> Number:
    metrics = dict(metrics_of(result))
    digest = result.get("checkpoint_sha256")
    digest = digest if isinstance(digest, str) else None
    name = next(iter(metrics), "")
    value = _shown(metrics.pop(name)) if name else "-"
    if "std" in metrics:
        value += f" ± {_shown(metrics.pop('std'))}"
    sizes = [f"{count:,} {split}" for split, count in splits_of(result).items()]
    facts = [
        f"weights {digest[:SHOWN_SHA]}" if digest else "no checkpoint",
        f"seed {result.get('seed', 'unknown')}, {result.get('date', 'no date')}",
        " / ".join(sizes) if sizes else "split sizes unknown",
    ]
    stale = result["target"] == "trained" and (
        digest is None or digest not in (run.weights, run.checkpoint)
    )
    others = ", ".join(f"{key} {_shown(number)}" for key, number in metrics.items())
    return Number(value, others, facts, digest, stale)


def _place(row: Row) -> tuple[int, str, str, str]:
    known = row.evaluation in EVALUATIONS
    first = EVALUATIONS.index(row.evaluation) if known else len(EVALUATIONS)
    return first, row.evaluation, row.dataset, row.protocol


def _shown(number: float) -> str:
    return f"{number:.2f}" if number == 0 or abs(number) >= 1 else f"{number:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
