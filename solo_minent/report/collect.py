"""What run folders hold for a report, read and checked before anything is computed or drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from solo_minent.checkpoint import BACKBONE_FILE, CHECKPOINT_FILE, RESULTS_FILE, read_results
from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.schema import RunConfig

ENVIRONMENT_FILE = "environment.json"
LEFT_BY_REPORTS = (".html", ".png", ".csv", ".json", "_files")


@dataclass(frozen=True)
class Run:
    """One run as its folder has it.

    Attributes:
        config: resolved.
        label: short name, no other run of the report has it.
        log: `log.csv`, one row an epoch.
        results: `results.json`.
        environment: of the last session that trained it; empty if it is not recorded.
        weights: sha256 of the exported backbone, None before the run is finished.
        checkpoint: sha256 of the last checkpoint, None without one.
    """

    config: RunConfig
    label: str
    log: pd.DataFrame
    results: list[dict[str, Any]]
    environment: dict[str, Any]
    weights: str | None
    checkpoint: str | None


def find_runs(paths: list[str | Path]) -> list[Path]:
    """The run folders that paths name: themselves, or all those below them, in order of name.

    A run folder holds `config.yaml`. Pages, pictures and tables that an earlier report left among
    the paths (`report runs/*`) are passed over.

    Raises:
        UserError: a path is missing, or a folder holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        below = sorted(file.parent for file in path.rglob("config.yaml")) if path.is_dir() else []
        if (path / "config.yaml").is_file():
            found.append(path)
        elif below:
            found += below
        elif not (path.exists() and path.name.endswith(LEFT_BY_REPORTS)):
            what = "holds no run" if path.is_dir() else "is missing"
            raise UserError(
                f"run folder {what}: {path}. A folder that solo-minent pretrain made was expected, "
                "or one that holds some. Name it, or use --recipe."
            )
    return found


def read_runs(configs: list[RunConfig]) -> list[Run]:
    """Reads the files of each run; of a folder that is named twice, the first counts.

    Raises:
        UserError: there is no run, or a file of one is missing or damaged.
    """
    first: dict[Path, RunConfig] = {}
    for config in configs:
        first.setdefault(config.run_dir.resolve(), config)
    unique = list(first.values())
    if not unique:
        raise UserError(
            "run is not named: no run folder. A report needs at least one. "
            "Name the folders that solo-minent pretrain made: solo-minent report runs/*"
        )
    return [
        Run(
            config,
            label,
            read_log(config.run_dir / "log.csv"),
            checked_results(config.run_dir),
            read_environment(config.run_dir / ENVIRONMENT_FILE),
            weights_of(config),
            weights_of(config, CHECKPOINT_FILE),
        )
        for config, label in zip(unique, labels_of(unique), strict=True)
    ]


def reread_results(run: Run) -> Run:
    """The run with the results that its folder has by now."""
    return replace(run, results=checked_results(run.config.run_dir))


def labels_of(configs: list[RunConfig]) -> list[str]:
    """method/name, with the data set or the folder in front where that alone tells runs apart."""
    datasets = {config.data.dataset for config in configs}
    short = [f"{config.method}/{config.name}" for config in configs]
    if len(datasets) > 1 or len(set(short)) < len(short):
        short = [
            f"{config.data.dataset}/{label}" for config, label in zip(configs, short, strict=True)
        ]
    if len(set(short)) < len(short):
        short = [str(config.run_dir) for config in configs]
    # A folder name that is no UTF-8 is shown with question marks.
    return [label.encode("utf-8", "replace").decode() for label in short]


def read_log(path: Path) -> pd.DataFrame:
    """`log.csv` as a table of numbers.

    Raises:
        UserError: there is no log, or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"log is missing: {path}. A run writes it after its first epoch. "
            "Start the run with solo-minent pretrain."
        )
    try:
        log = pd.read_csv(path)
        wrong = "no epochs" if log.empty or "epoch" not in log else ""
        if not wrong and len(log.select_dtypes("number").columns) < len(log.columns):
            wrong = "not all values are numbers"
    except ValueError as error:  # pandas' own errors and those of the encoding are its subclasses
        wrong = " ".join(str(error).split())
    if wrong:
        raise UserError(
            f"log is damaged: {path} ({wrong}). A table of numbers, one row an epoch, was "
            "expected. Restore the file, or train the run again in an empty folder."
        )
    return log


def checked_results(run_dir: Path) -> list[dict[str, Any]]:
    """The results of a run, each with target, evaluation, protocol and data set.

    Raises:
        UserError: `results.json` is damaged.
    """
    results = read_results(run_dir)
    for number, result in enumerate(results):
        for key in ("target", "evaluation", "protocol", "dataset"):
            if not isinstance(result.get(key), str):
                path = run_dir / RESULTS_FILE
                raise UserError(
                    f"results are damaged: {path} (result {number} lacks {key}). Each result has "
                    "target, evaluation, protocol and dataset. Restore the file, or start a new "
                    f"one: mv {path} {path}.damaged"
                )
    return results


def read_environment(path: Path) -> dict[str, Any]:
    """The last entry of `environment.json`; {} if there is no such file.

    Raises:
        UserError: the file is no list of environments.
    """
    if not path.is_file():
        return {}
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict):
            return sessions[-1]
        wrong = "no list of environments"
    except (ValueError, RecursionError) as error:  # JSON of thousands of brackets
        wrong = str(error)
    raise UserError(
        f"environment is damaged: {path} ({wrong}). One entry a session of the run was expected. "
        f"Restore the file, or go without it: mv {path} {path}.damaged"
    )


def weights_of(config: RunConfig, file: str | Path = BACKBONE_FILE) -> str | None:
    path = config.run_dir / file
    return sha256(path) if path.is_file() else None
