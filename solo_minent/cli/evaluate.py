"""Commands that evaluate a backbone. Each prints what it stores in the run's results.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from solo_minent.allowed import Range, check_one_of, check_range
from solo_minent.cli.configs import all_configs, one_config
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.evaluation.targets import Target
    from solo_minent.schema import RunConfig

DISTANCES = ("euclidean", "cosine")
SPLITS = ("test", "train")
MODES = ("linear", "finetune")
T = TypeVar("T")


def linear(options: argparse.Namespace) -> int:
    config, target = _evaluated(options, "linear")
    from solo_minent.evaluation.linear import linear_eval

    _show(linear_eval(config, target))
    return 0


def knn(options: argparse.Namespace) -> int:
    distances = options.distance.split(",")
    for distance in distances:
        check_one_of("--distance", distance, DISTANCES)
    temperatures = _listed(
        "--temperature", options.temperature, lambda text: None if text == "none" else float(text)
    )
    for temperature in temperatures:
        if temperature is not None:
            check_range("--temperature", temperature, Range(0, 0.07, above=True))
    ks = _listed("--k", options.k, int) if options.k is not None else None
    for k in ks or ():
        check_range("--k", k, Range(1, 5))
    config, target = _evaluated(options)
    from solo_minent.evaluation.knn import knn_eval

    _show(*knn_eval(config, target, ks or [config.evaluation.knn_k], temperatures, distances))
    return 0


def finetune(options: argparse.Namespace) -> int:
    check_range("--percent", options.percent, Range(0, 10, high=100, above=True))
    if options.protocol is None and options.percent in (1, 10):
        options.protocol = f"twist_{options.percent:g}"
    config, target = _evaluated(options, "finetune")
    from solo_minent.evaluation.finetune import finetune_eval

    _show(finetune_eval(config, target, options.percent))
    return 0


def cluster(options: argparse.Namespace) -> int:
    check_one_of("--split", options.split, SPLITS)
    if options.clusters is not None:
        check_range("--clusters", options.clusters, Range(2, 10))
    config, target = _evaluated(options)
    from solo_minent.evaluation.cluster import cluster_eval

    _show(*cluster_eval(config, target, options.split, options.clusters))
    return 0


def transfer(options: argparse.Namespace) -> int:
    check_one_of("--mode", options.mode, MODES)
    config, target = _evaluated(options, options.mode)
    from solo_minent.evaluation.transfer import transfer_eval

    _show(
        transfer_eval(config, target, options.dataset, options.root, options.mode, options.protocol)
    )
    return 0


def detect(options: argparse.Namespace) -> int:
    config, target = _evaluated(options, "detect")
    from solo_minent.evaluation.detect import detect_eval
    from solo_minent.evaluation.detection_data import detection_data

    result = detect_eval(config, target, *detection_data(options.root))
    if result:  # of several processes the first one tests
        _show(result)
    return 0


def export(options: argparse.Namespace) -> int:
    config = one_config(options)
    from solo_minent.evaluation.targets import load_target
    from solo_minent.export import export_backbone, loading_hint

    target = load_target(config, options.target)
    path = export_backbone(config, target, options.format, options.out)
    print(f"file: {path}\n{loading_hint(config, target, options.format, path)}")
    return 0


def umap(options: argparse.Namespace) -> int:
    check_one_of("--split", options.split, SPLITS)
    check_one_of("--method", options.method, ("umap", "pca"))
    config, target = _evaluated(options)
    from solo_minent.evaluation.umap import plot_projection

    print(f"picture: {plot_projection(config, target, options.method, options.split)}")
    return 0


def report(options: argparse.Namespace) -> int:
    configs = all_configs(options, below=True)
    from solo_minent.report import report

    page = report(
        configs,
        options.out and Path(options.out),
        csv=options.csv and Path(options.csv),
        evaluate=options.evaluate,
        features=not options.no_features,
    )
    print(f"page: {page}")
    return 0


def _evaluated(options: argparse.Namespace, kind: str | None = None) -> tuple[RunConfig, Target]:
    """The run and the backbone that a command names.

    Raises:
        UserError: one of them is not there, or the result could not be stored.
    """
    config = one_config(options, kind)
    from solo_minent.evaluation.results import check_storable
    from solo_minent.evaluation.targets import load_target

    check_storable(config)
    return config, load_target(config, options.target)


def _listed(option: str, text: str, convert: Callable[[str], T]) -> list[T]:
    """The values of an option with commas between them."""
    try:
        return [convert(part.strip()) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} is no list of numbers: {text}. Numbers with commas between are taken. "
            f"Write for example {option}=5,20."
        ) from None


# What a result holds besides its numbers.
_DESCRIPTION = frozenset(
    {"target", "evaluation", "protocol", "dataset", "seed", "weights", "checkpoint_sha256", "date"}
)


def _show(*results: dict[str, Any]) -> None:
    for result in results:
        numbers = {
            key: value
            for key, value in result.items()
            if key not in _DESCRIPTION
            and not key.endswith("_images")
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        }
        print(result["protocol"])
        print("  ".join(f"{name} {_number(value)}" for name, value in numbers.items()))


def _number(value: float) -> str:
    small = isinstance(value, float) and 0 < abs(value) < 0.01
    return str(value) if isinstance(value, int) else f"{value:.2g}" if small else f"{value:.2f}"
