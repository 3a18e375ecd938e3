"""Runs as one page: curves, monitors, results side by side, and what the features show."""

from __future__ import annotations

import os
from pathlib import Path

from solo_minent.config import unwritable
from solo_minent.errors import UserError
from solo_minent.report.collect import Run, find_runs, read_runs, reread_results
from solo_minent.report.evaluate import (
    check_evaluation,
    evaluate_baselines,
)
from solo_minent.report.page import Files, write_page
from solo_minent.report.results import write_csv
from solo_minent.schema import RunConfig

__all__ = ["find_runs", "report"]


def report(
    configs: list[RunConfig],
    out: Path | None = None,
    csv: Path | None = None,
    evaluate: bool = False,
    features: bool = True,
    progress: bool = True,
) -> Path:
    """Writes one self-contained HTML page about runs, and its pictures beside it.

    Args:
        configs: of the runs, in the order in which they shall appear; they may differ in method
            and data set. Of a folder that is named twice, the first counts.
        out: the page (`.html`) or a folder for it. Default: `report.html` in the run's folder, its
            pictures beside it (`report.png` has the curves); of several runs in the folder that
            holds them all, its pictures in `report_files/`.
        csv: file to write all results of the runs to, one row each.
        evaluate: first run linear, kNN and few-shot evaluation of each run, its untrained backbone
            and raw pixels (up to 64 x 64), and print them as a table.
        features: show neighbours, a map and confusions of trained runs whose data is there; where
            it is not, the page says so.
        progress: show bars.

    Returns:
        The page.

    Raises:
        UserError: there is no run, a file of one is missing or damaged, or the page cannot be
            written; with `evaluate`, a run is not finished or its data is missing.
    """
    runs = read_runs(configs)
    files = _files(runs, out)
    for path in (files.page, *([csv] if csv else [])):
        _check_file(path)
    notes = []
    if evaluate:
        for run in runs:
            check_evaluation(run.config)
        for run in runs:
            left_out = evaluate_baselines(run.config, progress)
            notes += [f"{run.label}: left out {what}" for what in left_out]
        runs = [reread_results(run) for run in runs]
    write_page(files, runs, notes, features, progress)
    if csv:
        write_csv(csv, runs)
    return files.page


def _files(runs: list[Run], out: Path | None) -> Files:
    """Where the page and its pictures go."""
    if out is None and len(runs) == 1:
        folder = runs[0].config.run_dir
        return Files(folder / "report.html", folder, "report")
    if out is None:
        folders = [os.path.abspath(run.config.run_dir) for run in runs]
        out = Path(os.path.commonpath(folders))
        # Shorter to read, where it is below the working folder.
        out = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    page = out if out.suffix == ".html" else out / "report.html"
    return Files(page, page.with_name(f"{page.stem}_files"), "")


def _check_file(path: Path) -> None:
    """Checks that a file can be written, and makes nothing.

    Raises:
        UserError: it is a folder, or the nearest folder that exists cannot be written.
    """
    what = "it is a folder" if path.is_dir() else unwritable(path.parent)
    if what:
        raise UserError(
            f"report cannot be written: {path}, {what}. It needs a folder that you may write to. "
            "Name one with --out, or another file with --csv."
        )
