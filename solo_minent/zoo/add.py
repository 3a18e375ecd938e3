"""A model of the zoo out of a finished run: the file, its records, its entry, its row of results.

What is shipped is what was measured: where the shipped file is another one than the run's (float16,
or no folders of this machine in its header), kNN and linear are evaluated again, on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solo_minent.checkpoint import BACKBONE_FILE, RESULTS_FILE
from solo_minent.config import PATHS, load_run, recipes, to_yaml
from solo_minent.data.transforms import normalization
from solo_minent.errors import UserError
from solo_minent.files import sha256, write_bytes, write_json, write_text
from solo_minent.report.collect import (
    ENVIRONMENT_FILE,
    checked_results,
    read_environment,
    read_log,
)
from solo_minent.schema import DataConfig, RunConfig
from solo_minent.weight_files import read_weight_file, safetensors_bytes
from solo_minent.zoo.index import adding, check_entry, python_name, read_index, write_index
from solo_minent.zoo.models import load_file
from solo_minent.zoo.rows import check_seed, remove_row, write_row
from solo_minent.zoo.schema import Entry, FileEntry, Metric, Normalization
from solo_minent.zoo.verify import CHECKPOINTS, MAX_SHIPPED

FILES = ("config.yaml", "log.csv", RESULTS_FILE, ENVIRONMENT_FILE, BACKBONE_FILE)
MAX_CHANGE = 0.1  # of kNN accuracy by float16, in points
EVALUATIONS = ("knn", "linear")


@dataclass(frozen=True)
class Request:
    """What is to be added.

    Attributes:
        run: folder of a finished run.
        id: of the model.
        float16: of its weights.
        max_change: of kNN accuracy that float16 may cost, in points.
        licence: of the weights.
        recipe: name of the run's recipe, if its environment.json does not tell.
        hours: of training.
        urls: where the file will be, besides the repository.
        overrides: of the run's configuration, such as data.root=…
        only_results: write the row of results alone: a further seed of a model.
    """

    run: Path
    id: str
    float16: bool = False
    max_change: float = MAX_CHANGE
    licence: str = "MIT"
    recipe: str | None = None
    hours: float | None = None
    urls: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    only_results: bool = False


def add_run(request: Request, zoo: Path) -> Entry:
    """Adds a model to the zoo, whole or not at all.

    Args:
        request: what is to be added.
        zoo: folder with `models.yaml`, of a checkout; the file goes to `checkpoints/`, its records
            to `checkpoints/<id>/`, its row to `results/`.

    Raises:
        UserError: the run is not finished or not evaluated, the id is taken, float16 costs too
            much, or the file is too large for a repository.
    """
    config, results = _finished(request.run)
    entry = _entry(request, config)
    entry.metrics = _metrics(config, results, request.run / "log.csv")
    check_entry(zoo, entry)
    environment = read_environment(request.run / ENVIRONMENT_FILE)
    with adding(zoo) as folder:
        if request.only_results:
            check_seed(zoo, entry, config)
            write_row(zoo, entry, config, environment)
            return entry
        _check_free(zoo, entry.id)
        file = folder / entry.file.name
        _write_file(request, config, file)
        entry.file.bytes, entry.file.sha256 = file.stat().st_size, sha256(file)
        if entry.file.bytes > MAX_SHIPPED:
            raise UserError(
                f"file is too large for a repository: {file.name} has {entry.file.bytes:,} bytes. "
                f"It takes {MAX_SHIPPED:,}. Add --float16, or publish it elsewhere and use "
                "--from-file with --url."
            )
        same = [e.id for e in read_index(zoo) if e.file.sha256 == entry.file.sha256]
        if same:
            raise UserError(
                f"weights are there: {same[0]} in {zoo} is the same file. A model has one name. "
                f"Use --target {same[0]}, or name another run."
            )
        records = folder / entry.id
        _write_records(request, config, records)
        if entry.file.sha256 != sha256(request.run / BACKBONE_FILE):
            results = _again(request, entry, file, records, results)
        loaded = f"{file.name}: {load_file(entry, file).loaded.line}"
        results = [_without_folders(result, entry.id, loaded) for result in results]
        write_json(records / RESULTS_FILE, results)
        entry.metrics = _metrics(config, results, records / "log.csv")
        _publish(zoo, entry, config, environment, records, file)
    return entry


def _publish(
    zoo: Path,
    entry: Entry,
    config: RunConfig,
    environment: dict[str, Any],
    records: Path,
    file: Path,
) -> None:
    """Gives everything its name, the index last: what a killed process leaves, verify finds."""
    places = zoo / CHECKPOINTS / entry.id, zoo / CHECKPOINTS / file.name
    try:
        records.rename(places[0])
        file.rename(places[1])
        write_row(zoo, entry, config, environment)
        write_index(zoo, [*read_index(zoo), entry])
    except BaseException:
        shutil.rmtree(places[0], ignore_errors=True)
        places[1].unlink(missing_ok=True)
        remove_row(zoo, entry)
        raise


def _check_free(zoo: Path, name: str) -> None:
    places = [zoo / CHECKPOINTS / f"{name}.safetensors", zoo / CHECKPOINTS / name]
    alike = [e.id for e in read_index(zoo) if python_name(e.id) == python_name(name)]
    if alike or any(place.exists() for place in places):
        raise UserError(
            f"model is there: {(alike or [name])[0]} in {zoo}. Nothing of the zoo is overwritten. "
            "Choose another --id; to replace it, first remove its entry, file and folder."
        )


def _finished(run: Path) -> tuple[RunConfig, list[dict[str, Any]]]:
    """The configuration and the results of the trained backbone of a run that is done."""
    config = load_run(run)
    gone = [name for name in FILES if not (run / name).is_file()]
    if gone:
        raise UserError(
            f"run is not finished: {run / gone[0]} is missing. A model has {', '.join(FILES)}. "
            f"Finish it with solo-minent pretrain, then solo-minent knn {run} and linear {run}."
        )
    log = read_log(run / "log.csv")
    if int(log["epoch"].max()) != config.max_epochs:
        raise UserError(
            f"run is not finished: {run}, epoch {int(log['epoch'].max())} of {config.max_epochs}. "
            "The last epoch counts. Start the same solo-minent pretrain again."
        )
    if config.data.file_list:
        raise UserError(
            f"run is not one that others can repeat: {run}, data.file_list={config.data.file_list}."
            " The list is on this machine alone. Train on data.train_images=…, or on all images."
        )
    wanted = {
        "checkpoint_sha256": sha256(run / BACKBONE_FILE),
        "dataset": config.data.dataset,
        "image_size": config.data.image_size,
        "normalization": [list(values) for values in normalization(config.data)],
    }
    results = _largest(
        result
        for result in checked_results(run)
        if all(result.get(key) == value for key, value in wanted.items())
        and result["evaluation"] in EVALUATIONS
        and isinstance(result.get("top1"), int | float)
        and all(isinstance(count, int) for count in _images(result))
    )
    lacks = [name for name in EVALUATIONS if name not in {r["evaluation"] for r in results}]
    if lacks:
        raise UserError(
            f"results are missing: {run / RESULTS_FILE} has no {lacks[0]} of {BACKBONE_FILE}. A "
            f"model of the zoo says what it reaches. Run solo-minent {lacks[0]} {run}."
        )
    return config, results


def _largest(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of results by the same protocol, the one of the most images."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        key = result["evaluation"], result["protocol"]
        found[key] = max(found.get(key, result), result, key=_images)
    return list(found.values())


def _images(result: dict[str, Any]) -> tuple[Any, Any]:
    return result.get("test_images"), result.get("train_images")


def _entry(request: Request, config: RunConfig) -> Entry:
    """All of the entry that is known before the file is made."""
    sessions = _sessions(request.run)
    name = f"{request.id}.safetensors"
    records = f"{CHECKPOINTS}/{request.id}"
    mean, std = normalization(config.data)
    last = sessions[-1]
    urls = [*request.urls, f"{CHECKPOINTS}/{name}"]
    dtype = "float16" if request.float16 else "float32"
    hardware = last["gpus"][0] if last.get("gpus") else f"{last.get('cpus')} CPU cores"
    return Entry(
        id=request.id,
        ours=True,
        files=[FileEntry(name, 1, "0" * 64, "safetensors", dtype, urls)],
        backbone=config.backbone,
        feature_dim=_feature_dim(config),
        normalization=Normalization(list(mean), list(std), config.data.image_size),
        dataset=config.data.dataset,
        method=config.method,
        train_images=config.data.train_images,
        epochs=config.max_epochs,
        batch_size=config.global_batch_size,
        seed=config.seed,
        precision=config.precision,
        licence=request.licence,
        recipe=_recipe(request, config, sessions),
        config=f"{records}/config.yaml",
        log=f"{records}/log.csv",
        results=f"{records}/{RESULTS_FILE}",
        environment=f"{records}/{ENVIRONMENT_FILE}",
        commit=last.get("commit") or f"v{last.get('solo_minent', '0')}",
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        hours=request.hours,
        hardware=hardware,
    )


def _feature_dim(config: RunConfig) -> int:
    from solo_minent.backbones import build_backbone

    network = config.backbone
    return build_backbone(network.name, network.stem, **network.kwargs).num_features


def _sessions(run: Path) -> list[dict[str, Any]]:
    """What trained the run, session by session, without folders of this machine."""
    read_environment(run / ENVIRONMENT_FILE)  # refuses a damaged one
    sessions = json.loads((run / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    sessions = [session for session in sessions if isinstance(session, dict)]
    for session in sessions:
        words = [word for word in session.get("command") or [] if isinstance(word, str)]
        kept = [w for w in words if w.partition("=")[0] not in PATHS and "/" not in w]
        names = [f"--recipe={word}" for word in words if word in recipes()]
        session["command"] = [word for word in kept if word != "--recipe"] + names
    return sessions


def _recipe(request: Request, config: RunConfig, sessions: list[dict[str, Any]]) -> str | None:
    if request.recipe:
        return request.recipe
    words = [word for session in sessions for word in session["command"]]
    named = [word.removeprefix("--recipe=") for word in words if word.startswith("--recipe=")]
    guess = f"{config.data.dataset}/{config.method}"
    return (named or [name for name in recipes() if name == guess] or [None])[0]


def _write_file(request: Request, config: RunConfig, path: Path) -> None:
    """The shipped file: the run's, or another one where dtype or header must differ."""
    source = request.run / BACKBONE_FILE
    clean = _without_places(config.data)
    tensors, metadata = read_weight_file(source)
    stated = json.loads(metadata.get("data", "null"))
    if not request.float16 and stated == asdict(clean):
        write_bytes(path, source.read_bytes())
        return
    state = {name: _half(name, t) if request.float16 else t for name, t in tensors.items()}
    metadata = {**metadata, "data": json.dumps(asdict(clean))}
    write_bytes(path, safetensors_bytes({k: t.contiguous() for k, t in state.items()}, metadata))


def _half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not bool(half.isfinite().all()):
        raise UserError(
            f"weights do not fit in float16: {name} has {tensor.abs().max():.3g}. float16 ends at "
            f"{torch.finfo(torch.float16).max:.0f}. Leave --float16 out."
        )
    return half


def _without_places(data: DataConfig) -> DataConfig:
    return replace(data, root=None, file_list=None)


def _write_records(request: Request, config: RunConfig, folder: Path) -> None:
    folder.mkdir()
    # By its name, what others measure of it goes to a run folder of its own.
    places = {"name": request.id, "output_dir": "runs", "folder": None}
    shipped = replace(config, data=_without_places(config.data), **places)
    write_text(folder / "config.yaml", to_yaml(shipped))
    write_bytes(folder / "log.csv", (request.run / "log.csv").read_bytes())
    write_json(folder / ENVIRONMENT_FILE, _sessions(request.run))


def _without_folders(result: dict[str, Any], name: str, loaded: str) -> dict[str, Any]:
    kept = {key: value for key, value in result.items() if key != "root"}
    return {**kept, "target": name, "weights": loaded}


def _again(
    request: Request, entry: Entry, file: Path, folder: Path, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Results of the shipped file, if its kNN accuracy is that of the run."""
    from solo_minent.evaluation.knn import knn_eval
    from solo_minent.evaluation.linear import linear_eval
    from solo_minent.evaluation.targets import load_target

    config = load_run(request.run, list(request.overrides))
    config = replace(config, folder=str(folder))
    target = load_target(config, str(file))
    try:
        (knn,) = knn_eval(config, target, [config.evaluation.knn_k])
        keys = ("evaluation", "protocol", "train_images", "test_images")
        same = [r for r in before if all(r.get(key) == knn[key] for key in keys)]
        if not same:
            raise UserError(
                f"results are missing: {request.run / RESULTS_FILE} has no {knn['protocol']} of "
                f"{knn['test_images']} images. The shipped file is compared with it. Run "
                f"solo-minent knn {request.run}."
            )
        change = abs(knn["top1"] - same[0]["top1"])
        if change > request.max_change:
            raise UserError(
                f"float16 changes kNN accuracy: {same[0]['top1']:.2f} to {knn['top1']:.2f}. At "
                f"most {request.max_change:g} points are allowed. Leave --float16 out."
            )
        return [knn, linear_eval(config, target)]
    finally:
        shutil.rmtree(folder / "features", ignore_errors=True)
        for left in folder.glob(".*.lock"):
            left.unlink()


def _metrics(config: RunConfig, results: list[dict[str, Any]], log: Path) -> list[Metric]:
    own = f"{config.evaluation.knn_k}-NN, euclidean, majority vote"
    ordered = sorted(results, key=lambda r: (r["evaluation"] != "knn", r["protocol"] != own))
    metrics = [
        Metric(r["evaluation"], r["protocol"], round(r["top1"], 2), r.get("test_images"))
        for r in ordered
    ]
    last = read_log(log).iloc[-1].to_dict()
    if "val_acc1" in last:
        words = "classifier trained along with the backbone, last epoch"
        metrics.append(Metric("online", words, round(float(last["val_acc1"]), 2)))
    return metrics
