"""Results: one number with everything that is needed to trust it, in the run's `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from solo_minent import __version__
from solo_minent.checkpoint import add_result, read_results
from solo_minent.config import check_writable
from solo_minent.data.transforms import normalization
from solo_minent.evaluation.targets import Target, with_normalization
from solo_minent.schema import RunConfig

PACKAGES = ("torch", "torchvision", "lightning", "timm")


def check_storable(config: RunConfig) -> None:
    """Finds out before the slow part whether a result could be stored.

    Raises:
        UserError: the run's folder cannot be written, or its `results.json` is damaged.
    """
    check_writable(config)
    read_results(config.run_dir)


def store_result(
    config: RunConfig,
    target: Target,
    evaluation: str,
    protocol: str,
    metrics: Mapping[str, float],
    splits: Mapping[str, int],
    dataset: str | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Adds a result to the `results.json` of the run folder, atomically, and returns it.

    A result of the same question (`checkpoint.add_result`) is replaced.

    Args:
        config: of the run; its seed and folder are used.
        target: what was evaluated.
        evaluation: the command: linear, knn, finetune, cluster, transfer, detect, …
        protocol: in words, with every hyper-parameter, without the numbers of the result.
        metrics: flat numbers, accuracies in percent.
        splits: images of each split that was used, `{"train": 50000, "test": 10000}`.
        dataset: what it was evaluated on, if not the run's own data set.
        details: further JSON values.
    """
    from solo_minent import host

    mean, std = normalization(with_normalization(config, target).data)
    result = {
        "target": target.kind,
        "evaluation": evaluation,
        "protocol": protocol,
        **metrics,
        "dataset": dataset or config.data.dataset,
        **{f"{split}_images": count for split, count in splits.items()},
        "image_size": config.data.image_size,
        "normalization": [list(mean), list(std)],
        **({"root": _resolved(config)} if config.data.dataset == "custom" else {}),
        "seed": config.seed,
        "weights": target.origin,
        "checkpoint_sha256": target.checkpoint_sha256,
        **details,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": {
            "solo_minent": __version__,
            "solo_learn": host.VERSION,
            **{package: version(package) for package in PACKAGES},
        },
    }
    add_result(config.run_dir, result)
    return result


def _resolved(config: RunConfig) -> str:
    return str(Path(config.data.root or ".").expanduser().resolve())
