"""Time and memory of our kNN and of solo-learn's, side by side in one run.

    python -m solo_minent.bench_knn --csv knn.csv

Rounds alternate between the two, each in a process of its own: a busy moment of the machine hits
both, and the peak of one's memory is not the other's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDES = ("solo-learn", "solo_minent")
DISTANCES = ("cosine", "euclidean")
DATA = ("clusters", "gaussian")
K, TEMPERATURE, CLASSES = 20, 0.07, 10


def main() -> int:
    """Runs the rounds, prints a table and writes a csv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", type=int, default=50_000, help="training points")
    parser.add_argument("--test", type=int, default=10_000, help="test points")
    parser.add_argument("--width", type=int, default=512, help="numbers of a point")
    parser.add_argument("--rounds", type=int, default=3, help="of every side")
    parser.add_argument("--threads", type=int, default=None, help="default: PyTorch's")
    parser.add_argument("--data", default=",".join(DATA), help="clusters, gaussian or both")
    parser.add_argument("--csv", type=Path, default=None, help="file to write")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--distance", choices=DISTANCES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    rows = []
    for data in options.data.split(","):
        for distance in DISTANCES:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(options.rounds):
                for side in SIDES:
                    runs[side].append(_run(options, data, distance, side))
            rows += [_row(data, distance, side, runs[side], runs[SIDES[0]]) for side in SIDES]
    _print(options, rows)
    return 0


def _run(options: argparse.Namespace, data: str, distance: str, side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "solo_minent.bench_knn", "--side", side]
    command += ["--distance", distance, "--data", data, "--width", str(options.width)]
    command += ["--train", str(options.train), "--test", str(options.test)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One side once: seconds, CPU seconds, MiB beyond the features, MiB in all, and accuracy."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    labels, truth = (
        torch.randint(CLASSES, (n,), generator=generator) for n in (options.train, options.test)
    )
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
    return {
        "data": data,
        "distance": distance,
        "kNN": side,
        "seconds": median("seconds"),
        "spread": (max(seconds) - min(seconds)) / 2,
        "CPU s": median("cpu"),
        "times faster": median("seconds", peer) / median("seconds"),
        "CPU times less": median("cpu", peer) / median("cpu"),
        "extra MiB": median("extra"),
        "of the peer's": median("extra") / median("extra", peer),
        "RSS MiB": median("rss"),
        "top-1": median("top1"),
    }


def _print(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from solo_minent import host
    from solo_minent.doctor import environment
    from solo_minent.files import write_atomic

    about = {
        "train": options.train,
        "test": options.test,
        "width": options.width,
        "k": K,
        "temperature": TEMPERATURE,
        "rounds": options.rounds,
        "solo_learn_version": host.VERSION,
    }
    table = Table(
        title=", ".join(f"{key} {value}" for key, value in about.items()),
        caption="extra: peak beyond what was held before (features and all); medians of the rounds",
    )
    for column in rows[0]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:,.2f}" for v in row.values()))
    Console(width=160).print(table)
    if options.csv:
        machine = {key: str(value) for key, value in environment().items() if key != "command"}
        frame = pd.DataFrame([row | about | machine for row in rows])
        write_atomic(options.csv, lambda temporary: frame.to_csv(temporary, index=False))


if __name__ == "__main__":
    sys.exit(main())
