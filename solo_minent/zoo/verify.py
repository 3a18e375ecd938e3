"""Whether everything that the zoo ships, and everything in the cache, is what the index says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from solo_minent.allowed import short
from solo_minent.errors import UserError
from solo_minent.zoo.cache import cached, difference, in_repository
from solo_minent.zoo.index import find_model, read_index, zoo_folder
from solo_minent.zoo.schema import Entry, FileEntry

CHECKPOINTS = "checkpoints"
MAX_SHIPPED = 25_000_000  # bytes of a file in the repository
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
RECORDS = ("config", "log", "results", "environment")


class Check(NamedTuple):
    """One thing that was looked at: `wrong` is None if it is as it must be."""

    model: str
    what: str
    found: str
    wrong: str | None = None


def verify(names: list[str] | None = None, zoo: Path | None = None) -> list[Check]:
    """Checks files: size, sha256, header, and that their weights load whole; records: the numbers.

    Args:
        names: ids; all of them, and what lies beside them, if not given.
        zoo: folder of the index; `zoo_folder()` if not given.

    Raises:
        UserError: the index is wrong, or has no such model.
    """
    zoo = zoo or zoo_folder()
    entries = [find_model(name, zoo) for name in names] if names else read_index(zoo)
    checks: list[Check] = []
    for entry in entries:
        for file in entry.files:
            checks += _file(entry, file, zoo)
        # A wheel has the index alone.
        if (zoo / CHECKPOINTS).is_dir():
            checks += _records(entry, zoo)
    if not names:
        checks += _strays(entries, zoo) + _stray_rows(entries, zoo)
    return checks


def _file(entry: Entry, file: FileEntry, zoo: Path) -> list[Check]:
    shipped = [zoo / url for url in file.urls if "://" not in url]
    here = in_repository(file, zoo)
    if not (zoo / CHECKPOINTS).is_dir():
        shipped = here
    found = []
    for place in [*shipped, *([cached(file)] if cached(file).is_file() else [])]:
        what = str(place.relative_to(zoo)) if place in shipped else str(place)
        wrong = difference(place, file)
        if wrong is None and place in shipped and file.bytes > MAX_SHIPPED:
            wrong = f"has {file.bytes:,} bytes, a repository takes {MAX_SHIPPED:,}"
        line = f"{file.bytes:,} bytes, sha256 {file.sha256[:16]}…"
        if wrong is None and file is entry.file:
            try:
                line = f"{line}, {_loads(entry, place)}"
            except UserError as error:
                wrong = str(error)
        found.append(Check(entry.id, what, line, wrong))
    return found or [Check(entry.id, file.name, "not downloaded")]


def _loads(entry: Entry, path: Path) -> str:
    """What loads of a file whose hash is right.

    Raises:
        UserError: the header says another network or format of numbers, or it does not load whole.
    """
    from solo_minent.zoo.models import load_file

    if path.suffix == ".safetensors":
        _check_header(entry, path)
    return load_file(entry, path).loaded.line


def _check_header(entry: Entry, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    from solo_minent.schema import BackboneConfig

    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            kinds = {file.get_slice(name).get_dtype() for name in names}
            metadata = file.metadata() or {}
        stated = json.loads(metadata.get("backbone", "null"))
        network = entry.backbone if stated is None else BackboneConfig(**stated)
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"header is damaged: {short(error)}") from error
    if network != entry.backbone:
        raise UserError(f"header has another backbone: {short(network)}")
    kinds = {DTYPES[kind] for kind in kinds if kind in DTYPES}
    dtype = "mixed" if len(kinds) > 1 else "".join(kinds)
    if dtype != entry.file.dtype:
        raise UserError(f"weights are {dtype or 'no numbers'}, the index says {entry.file.dtype}")


def _records(entry: Entry, zoo: Path) -> list[Check]:
    """Configuration, log, results and environment, and that the numbers are those of the index."""
    named = {key: getattr(entry, key) for key in RECORDS if getattr(entry, key)}
    gone = [path for path in named.values() if not (zoo / path).is_file()]
    if gone:
        return [Check(entry.id, gone[0], "", "is missing")]
    if not entry.ours:
        return []
    try:
        _check_config(entry, zoo)
        _check_numbers(entry, zoo)
        _check_row(entry, zoo)
    except UserError as error:
        return [Check(entry.id, "records", "", str(error))]
    numbers = ", ".join(f"{m.evaluation} {m.top1:.2f}" for m in entry.metrics)
    return [Check(entry.id, "records", numbers)]


def _check_config(entry: Entry, zoo: Path) -> None:
    from solo_minent.config import load_run
    from solo_minent.data.transforms import normalization

    path = zoo / str(entry.config)
    config = load_run(path.parent)
    mean, std = normalization(config.data)
    constants = entry.normalization
    for key, here, there in (
        ("method", config.method, entry.method),
        ("backbone", config.backbone, entry.backbone),
        ("dataset", config.data.dataset, entry.dataset),
        ("train_images", config.data.train_images, entry.train_images),
        ("epochs", config.max_epochs, entry.epochs),
        ("batch_size", config.global_batch_size, entry.batch_size),
        ("seed", config.seed, entry.seed),
        ("image_size", config.data.image_size, constants.image_size),
        ("mean", list(mean), constants.mean),
        ("std", list(std), constants.std),
    ):
        if here != there:
            raise UserError(
                f"{key} is {short(here)} in {entry.config}, {short(there)} in the index"
            )


def _check_numbers(entry: Entry, zoo: Path) -> None:
    """Every metric is one of results.json, or of the last epoch of log.csv."""
    from solo_minent.report.collect import checked_results, read_log

    results = checked_results((zoo / str(entry.results)).parent)
    for result in results:
        if result.get("checkpoint_sha256") != entry.file.sha256:
            raise UserError(f"{entry.results} has a result of another file")
    for metric in entry.metrics:
        if metric.evaluation == "online":
            log = read_log(zoo / str(entry.log))
            last = log[log["epoch"] == entry.epochs].to_dict("records")
            found = [row.get("val_acc1", -1.0) for row in last]
        else:
            same = [r for r in results if r["evaluation"] == metric.evaluation]
            found = [r.get("top1", -1.0) for r in same if r["protocol"] == metric.protocol]
        if not any(abs(value - metric.top1) < 0.006 for value in found):
            raise UserError(
                f"{metric.evaluation} of the index is {metric.top1}, its records have "
                f"{', '.join(f'{value:.2f}' for value in found) or 'no such number'}"
            )


def _check_row(entry: Entry, zoo: Path) -> None:
    """The table has the numbers of this file."""
    from solo_minent.zoo.rows import read_rows, table_of

    path = table_of(zoo, entry.dataset)
    rows = [row for row in read_rows(path) if row["model"] == entry.id]
    row = next((row for row in rows if row["seed"] == str(entry.seed)), None)
    if row is None:
        raise UserError(f"{path.name} has no row of it with seed {entry.seed}")
    if row["sha256"] != entry.file.sha256:
        raise UserError(f"{path.name} has a row of another file for seed {entry.seed}")
    for name in ("knn", "linear", "online"):
        stated = {f"{m.top1:.2f}" for m in entry.metrics if m.evaluation == name}
        if (row[name] or stated) and row[name] not in stated:
            raise UserError(f"{name} is {row[name] or 'empty'} in {path.name}, not of the index")


def _strays(entries: list[Entry], zoo: Path) -> list[Check]:
    """What lies among the checkpoints and belongs to no model."""
    folder = zoo / CHECKPOINTS
    if not folder.is_dir():
        return []
    known = {zoo / url for e in entries for f in e.files for url in f.urls if "://" not in url}
    known |= {zoo / getattr(e, key) for e in entries for key in RECORDS if getattr(e, key)}
    strays = sorted(p for p in folder.rglob("*") if not p.is_dir() and p not in known)
    return [Check("-", str(p.relative_to(zoo)), "", "is no file of the index") for p in strays]


def _stray_rows(entries: list[Entry], zoo: Path) -> list[Check]:
    """Rows of a table of results that belong to no model of its data set."""
    from solo_minent.zoo.rows import FOLDER, read_rows, table_of

    checks = []
    for path in sorted((zoo / FOLDER).glob("zoo-*.csv")):
        known = {e.id for e in entries if e.ours and table_of(zoo, e.dataset) == path}
        try:
            rows = read_rows(path)
        except UserError as error:
            checks.append(Check("-", path.name, "", str(error)))
            continue
        names = dict.fromkeys(row["model"] for row in rows if row["model"] not in known)
        checks += [Check(name, path.name, "", "is no model of the index") for name in names]
    return checks
