"""Time and memory of our kNN and of solo-learn's, side by side in one run: `solo-minent bench knn`.

Rounds alternate between the two, each in a process of its own: a busy moment of the machine hits
both, and the peak of one's memory is not the other's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solo_minent.allowed import Range, check_one_of, check_ranges
from solo_minent.bench.pairs import ratio
from solo_minent.console import progress_bar
from solo_minent.errors import UserError

SIDES = ("solo-learn", "solo_minent")
DISTANCES = ("cosine", "euclidean")
DATA = ("clusters", "gaussian")
K, TEMPERATURE, CLASSES = 20, 0.07, 10


@dataclass(frozen=True)
class Sizes:
    """Points to search.

    Attributes:
        train: training points.
        test: test points.
        width: numbers of a point.
        threads: of PyTorch; 0 is its own choice.
    """

    train: int = 50_000
    test: int = 10_000
    width: int = 512
    threads: int = 0


def bench_knn(
    sizes: Sizes | None = None, data: Sequence[str] = DATA, pairs: int = 5
) -> list[dict[str, Any]]:
    """Both sides in turn, `pairs` times, with either distance.

    Args:
        sizes: of the search; by default 10,000 points of 512 numbers among 50,000.
        data: `clusters` (ten Gaussians) or `gaussian` (one).
        pairs: rounds of every side.

    Returns:
        One row for each data, distance and side. "times faster", with its lowest and highest pair,
        and "of the peer's" (memory) are against solo-learn's.

    Raises:
        UserError: unknown data, a size out of its range.
    """
    sizes = sizes or Sizes()
    for name in data:
        check_one_of("--data", name, DATA)
    ranges = {"train": Range(K, 50_000), "test": Range(CLASSES, 10_000), "width": Range(1, 512)}
    check_ranges(sizes, {**ranges, "threads": Range(0, 2)}, "--")
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("kNN", total=len(data) * len(DISTANCES) * pairs * len(SIDES))
        for name, distance in itertools.product(data, DISTANCES):
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for turn in range(pairs):
                for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
                    runs[side].append(_run(sizes, name, distance, side))
                    bar.advance(task)
            rows += [_row(name, distance, side, runs[side], runs[SIDES[0]]) for side in SIDES]
    return rows


def about(sizes: Sizes) -> dict[str, Any]:
    """What is the same for all rows."""
    from solo_minent import host

    fixed = {"k": K, "temperature": TEMPERATURE, "solo_learn_version": host.VERSION}
    points = {key: value for key, value in asdict(sizes).items() if key != "threads" or value}
    return {**points, **fixed, "device": "cpu"}


def _run(sizes: Sizes, data: str, distance: str, side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "solo_minent.bench.knn", "--side", side]
    command += ["--distance", distance, "--data", data]
    for key, value in asdict(sizes).items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(
            f"kNN of {side} has failed: {said}. Both must search {sizes.train} points to be "
            "compared. Take other sizes, or mend what solo-minent doctor names."
        )
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One side once: seconds, CPU seconds, MiB beyond the features, MiB in all, and accuracy."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    # solo-learn's kNN counts the classes of the test points: all of them must be there.
    labels, truth = (torch.arange(n) % CLASSES for n in (options.train, options.test))
    centres = torch.randn(CLASSES, options.width, generator=generator)
    centres *= 0.25 if options.data == "clusters" else 0.0
    train, test = (
        torch.randn(len(own), options.width, generator=generator).add_(centres[own])
        for own in (labels, truth)
    )
    if options.distance == "cosine":  # solo-learn 1.0.2 takes vectors of unit length
        train, test = (torch.nn.functional.normalize(points) for points in (train, test))
    compute = _solo_learn if options.side == SIDES[0] else _solo_minent
    # Libraries are loaded and kernels made before the clock starts.
    compute(train[:2048], labels[:2048], test[:256], truth[:256], options.distance)
    before = _peak(reset=True)
    busy, start = time.process_time(), time.perf_counter()
    top1 = compute(train, labels, test, truth, options.distance)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = _peak()
    return {"seconds": seconds, "cpu": busy, "extra": peak - before, "rss": peak, "top1": top1}


def _solo_learn(train: Any, labels: Any, test: Any, truth: Any, distance: str) -> float:
    from solo_minent.host.peers import knn_classifier

    metric = knn_classifier(K, TEMPERATURE, distance)
    metric.update(train_features=train, train_targets=labels)
    metric.update(test_features=test, test_targets=truth)
    return float(metric.compute()[0])


def _solo_minent(train: Any, labels: Any, test: Any, truth: Any, distance: str) -> float:
    from solo_minent.evaluation.knn import knn_accuracy

    return 100 * knn_accuracy(train, labels, test, truth, K, TEMPERATURE, distance)


def _peak(reset: bool = False) -> float:
    """Most MiB that this process held, on Linux since the last reset (which returns what it holds).

    Elsewhere since it began.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:" if reset else "VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status names no memory")


def _row(
    data: str, distance: str, side: str, runs: list[dict[str, Any]], peer: list[dict[str, Any]]
) -> dict[str, Any]:
    def median(key: str, of: list[dict[str, Any]] = runs) -> float:
        return statistics.median(run[key] for run in of)

    seconds = [run["seconds"] for run in runs]
    faster = ratio(seconds, [run["seconds"] for run in peer])
    return {
        "data": data,
        "distance": distance,
        "kNN": side,
        "seconds": median("seconds"),
        "times faster": faster.value,
        "low": faster.low,
        "high": faster.high,
        "pairs": faster.pairs,
        "CPU s": median("cpu"),
        "CPU times less": median("cpu", peer) / median("cpu"),
        "extra MiB": median("extra"),
        # Small sets may fit into what is held already.
        "of the peer's": median("extra") / max(median("extra", peer), 1 / 1024),
        "RSS MiB": median("rss"),
        "top-1": median("top1"),
    }


def _side() -> int:
    """One side in this process, as `bench_knn` asks for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for key in asdict(Sizes()):
        parser.add_argument(f"--{key}", type=int, required=True)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--distance", choices=DISTANCES, required=True)
    print(json.dumps(measure(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(_side())
