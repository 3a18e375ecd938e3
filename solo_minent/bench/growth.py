"""How time and memory grow: losses with n and d, kNN with its training set, a loader with workers.

`solo-minent bench growth`. Every series has four points in turn, each twice the one before; what is
said about a slope comes from a fit to them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from solo_minent.bench import losses
from solo_minent.bench.loaders import measure
from solo_minent.bench.losses import HEADS, MIB, check_turns, pick_devices
from solo_minent.bench.pairs import Run, in_turn, peak_memory
from solo_minent.checks import check
from solo_minent.config import load_recipe
from solo_minent.console import progress_bar
from solo_minent.data.loaders import num_workers
from solo_minent.evaluation.knn import knn_predict

WORKERS = (0, 1, 2, 4)
LOADER_RECIPE = "digits/minent"  # real images that come along
LIMITS = {"ms": 1e3, "MiB": 1024.0}  # one second, one GiB
FARTHEST = 16  # times the largest point: a slope says nothing of what is beyond
WHY = {
    "mec": "Builds n x n or d x d, the smaller, from n·d·min(n, d) products, and squares it: "
    "min(n, d)³ in time, min(n, d)² in memory. Each process does it for the global batch, so more "
    "processes do not share it.",
    "corinfomax": "Works in float64, on the global batch in each process: n·d² for the "
    "covariances, d³ for the Cholesky factors and their gradients, d² for the state. It stops at "
    "wide projections, and at devices with slow float64; n must stay above d.",
    "twist": "Element by element: n·C in time and memory, bound by memory bandwidth. It stops "
    "where a few (n, C) tensors a view no longer fit.",
    "minent": "Element by element over all code books: n·Σd in time and memory. Its heads' matrix "
    "products cost far more.",
    "kNN": "One product with every training point: linear in time. Training points are streamed: "
    "memory stays.",
    "loader": "Decoding and augmenting share the cores: more workers than cores are not started.",
}


@dataclass(frozen=True)
class Series:
    """What grows.

    Attributes:
        method: a loss, or kNN.
        against: n, d, C, Σd, or training points.
        values: four sizes.
        fixed: the other sizes.
        make: (size, device) -> run.
    """

    method: str
    against: str
    values: Sequence[int]
    fixed: str
    make: Callable[[int, torch.device], Run]


def series(tiny: bool = False) -> list[Series]:
    """What is measured; `tiny` are sizes of a smoke test."""
    cut = 32 if tiny else 1
    batch = _doubling(256 // cut)
    n, d, classes, narrow = 1024 // cut, 2048 // cut, 4096 // cut, 256 // cut
    heads = [width // 4 for width in HEADS]  # 4 at least
    points = _doubling(6250 // cut)
    queries, width = (1000, 512) if not tiny else (20, 16)
    all_heads = HEADS if not tiny else heads[-2:]
    return [
        Series("mec", "n", batch, f"d={d}", lambda v, on: _ours(losses.mec, v, d, on)),
        Series(
            "corinfomax",
            "n",
            batch,
            f"d={narrow}",
            lambda v, on: _ours(losses.corinfomax, v, narrow, on),
        ),
        Series(
            "twist", "n", batch, f"C={classes}", lambda v, on: _ours(losses.twist, v, classes, on)
        ),
        Series(
            "minent",
            "n",
            batch,
            f"Σd={sum(all_heads)}",
            lambda v, on: _ours(losses.minent, v, all_heads, on),
        ),
        Series("mec", "d", _doubling(narrow), f"n={n}", lambda v, on: _ours(losses.mec, n, v, on)),
        Series(
            "corinfomax",
            "d",
            _doubling(128 // cut),
            f"n={n}",
            lambda v, on: _ours(losses.corinfomax, n, v, on),
        ),
        Series(
            "twist",
            "C",
            _doubling(1024 // cut),
            f"n={narrow}",
            lambda v, on: _ours(losses.twist, narrow, v, on),
        ),
        Series(
            "minent",
            "Σd",
            _doubling(sum(heads)),
            f"n={narrow}",
            lambda v, on: _ours(
                losses.minent, narrow, [width * v // sum(heads) for width in heads], on
            ),
        ),
        Series(
            "kNN",
            "training points",
            points,
            f"{queries} queries, width {width}",
            partial(_knn, queries, width),
        ),
    ]


def bench_growth(
    devices: Sequence[str] = (), pairs: int = 5, seconds: float = 0.1, tiny: bool = False
) -> list[dict[str, Any]]:
    """Time and memory of every point of every series; the points of a series in turn.

    Args:
        devices: cpu, cuda; by default all that are there.
        pairs: turns of each point.
        seconds: about the time of one turn; a loader's is ten times longer.
        tiny: sizes of a smoke test.

    Returns:
        One row a point: ms (median), low and high of the turns; MiB is the peak of tensors beyond
        the inputs. A loader's ms are those of 1,000 images, its MiB those of all its processes.

    Raises:
        UserError: an unknown or missing device, `pairs` or `seconds` out of range.
    """
    check_turns(pairs, seconds)
    jobs = [(each, device) for device in pick_devices(devices) for each in series(tiny)]
    rows = []
    with progress_bar() as bar:
        for each, device in bar.track(jobs, description="growth"):
            rows += _grow(each, device, pairs, seconds)
        task = bar.add_task("loader", total=None)
        rows += _loader(pick_devices(devices)[-1], pairs, 10 * seconds)
        bar.remove_task(task)
    return rows


@dataclass(frozen=True)
class Exponent:
    """y ~ value^slope of one series.

    Attributes:
        method: as in `Series`, with `against`, `fixed` and device.
        against: what grew.
        fixed: the other sizes.
        device: cpu or cuda.
        quantity: ms or MiB.
        slope: least squares over all points, on logarithms.
        last: over the last doubling.
        limit: the size at which the last slope comes to a second or a GiB; None where that is
            beyond FARTHEST.
    """

    method: str
    against: str
    fixed: str
    device: str
    quantity: str
    slope: float
    last: float
    limit: float | None


def exponents(rows: Iterable[Mapping[str, Any]]) -> list[Exponent]:
    """The slopes of all series but the loader's, whose workers start at 0."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["against"] != "workers":
            key = tuple(str(row[name]) for name in ("method", "against", "fixed", "device"))
            groups.setdefault(key, []).append(row)
    return [
        _fit(key, quantity, sorted(group, key=lambda row: float(row["value"])))
        for key, group in groups.items()
        for quantity in LIMITS
    ]


def growth_table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The slopes in words, one row a series."""
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for e in exponents(rows):
        row = table.setdefault(
            (e.method, e.against, e.device),
            {"method": e.method, "against": e.against, "fixed": e.fixed, "device": e.device},
        )
        name, unit = ("time", "1 s") if e.quantity == "ms" else ("memory", "1 GiB")
        row[f"{name} ~"] = f"{e.slope:.2f}"
        row[f"{name}, last"] = f"{e.last:.2f}"
        row[f"{unit} at"] = "-" if e.limit is None else f"{e.limit:,.0f}"
    return list(table.values())


def _fit(key: tuple[str, ...], quantity: str, rows: Sequence[Mapping[str, Any]]) -> Exponent:
    x = [math.log(float(row["value"])) for row in rows]
    # No tensor beyond the inputs is no memory: a byte, for its logarithm.
    y = [math.log(max(float(row[quantity]), 1 / MIB)) for row in rows]
    slope = statistics.linear_regression(x, y).slope
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    further = (math.log(LIMITS[quantity]) - y[-1]) / last if last > 0 else math.inf
    limit = math.exp(x[-1] + further) if further <= math.log(FARTHEST) else None
    return Exponent(*key, quantity, slope, last, limit)


def _grow(each: Series, device: torch.device, pairs: int, seconds: float) -> list[dict[str, Any]]:
    runs = {str(value): each.make(value, device) for value in each.values}
    memory = {name: peak_memory(run, device) / MIB for name, run in runs.items()}
    times = in_turn(runs, pairs, seconds)
    return [
        _row(each.method, each.against, int(name), each.fixed, device, times[name], memory[name])
        for name in runs
    ]


def _row(
    method: str,
    against: str,
    value: int,
    fixed: str,
    device: torch.device,
    seconds: list[float],
    memory: float,
) -> dict[str, Any]:
    return {
        "method": method,
        "against": against,
        "value": value,
        "fixed": fixed,
        "device": device.type,
        "ms": 1e3 * statistics.median(seconds),
        "low": 1e3 * min(seconds),
        "high": 1e3 * max(seconds),
        "MiB": memory,
        "pairs": len(seconds),
    }


def _loader(device: torch.device, pairs: int, seconds: float) -> list[dict[str, Any]]:
    """Seconds for 1,000 images with more and more workers, and of the device format, in turn."""
    config = load_recipe(LOADER_RECIPE, [f"accelerator={'cpu' if device.type == 'cpu' else 'gpu'}"])
    sides = {("image_folder", workers): workers for workers in WORKERS} | {("device", 0): 0}
    configs = {
        (name, workers): check(
            replace(config, data=replace(config.data, format=name, num_workers=workers))
        )
        for name, workers in sides
    }
    found: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    memory = dict.fromkeys(sides, 0.0)
    for _ in range(pairs):
        for side, own in configs.items():
            rate, _, held, _ = measure(own, seconds)
            found[side].append(1 / rate)
            memory[side] = max(memory[side], held)
    return [
        _row(
            "loader",
            "workers",
            workers,
            f"{LOADER_RECIPE}, {name}, {num_workers(configs[name, workers])} started",
            device,
            [1e3 * each for each in found[name, workers]],
            memory[name, workers],
        )
        for name, workers in sides
    ]


def _ours(make: Callable[..., dict[str, Run]], n: int, d: Any, device: torch.device) -> Run:
    return make(n, d, device, torch.float32)["ours"]


def _knn(queries: int, width: int, points: int, device: torch.device) -> Run:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(points, width, generator=generator).to(device)
    test = torch.randn(queries, width, generator=generator).to(device)
    labels = torch.randint(10, (points,), generator=generator).to(device)
    return lambda: knn_predict(train, labels, test)


def _doubling(first: int) -> list[int]:
    return [first * 2**k for k in range(4)]
