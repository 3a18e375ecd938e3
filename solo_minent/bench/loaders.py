"""How fast the loaders are, side by side in one run."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from solo_minent.allowed import Range, check_one_of, check_range
from solo_minent.bench.output import Row, print_rows, write_rows
from solo_minent.checks import CHOICES, check
from solo_minent.console import progress_bar
from solo_minent.data.augmentations import DEFAULT_ORDER, parse_views
from solo_minent.data.datasets import FOLDER_SETS
from solo_minent.data.loaders import num_workers, pretrain_images, pretrain_loader
from solo_minent.data.transforms import normalization
from solo_minent.errors import UserError
from solo_minent.schema import RunConfig

# solo-learn's own loaders, by the name that they have here, and what `data.format` calls them.
PEERS = {"solo-learn": "image_folder", "solo-learn-dali": "dali"}
FORMATS = (*CHOICES["data.format"], *PEERS)
# A crop cannot be left out.
SWITCHES = tuple(name for name in DEFAULT_ORDER if name != "rrc")
WARM_UP_SECONDS = 1.0


@dataclass
class Measurement:
    """One loader.

    Attributes:
        images_per_second: one figure a round, of this process.
        cores: busy cores of this process and its children, one figure a round.
        memory: the most MiB that they held beyond what this process had before; what they share
            counts once (PSS, on Linux).
        device_memory: the most MiB allocated on the accelerator.
        without: images a second without one operation, by its name, one figure a round.
    """

    images_per_second: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    memory: float = 0.0
    device_memory: float = 0.0
    without: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rate: float, cores: float, memory: float, device_memory: float) -> None:
        """Takes in one round."""
        self.images_per_second.append(rate)
        self.cores.append(cores)
        self.memory = max(self.memory, memory)
        self.device_memory = max(self.device_memory, device_memory)

    def milliseconds(self, operation: str) -> float:
        """What an operation costs: ms for 1,000 images, the difference to doing without it."""
        return 1e6 / self.rate - 1e6 / statistics.median(self.without[operation])

    @property
    def rate(self) -> float:
        return statistics.median(self.images_per_second)


def bench_loaders(
    config: RunConfig, formats: Sequence[str] = (), seconds: float = 3.0, rounds: int = 3
) -> dict[str, Measurement]:
    """Draws batches from each loader in turn, `rounds` times, `seconds` each.

    Rounds alternate between the loaders: a busy moment of the machine hits them all. Batches are
    brought to the accelerator if there is one, as in training; it is waited for. Start-up and
    the first second are not counted.

    Args:
        config: data, views and batch size.
        formats: values of `data.format`, or of `PEERS`; by default image_folder, and dali for
            folders of images or device for sets that are kept as pixels, and of solo-learn's own
            loaders those that can make these views.
        seconds: time of one round.
        rounds: how often.

    Returns:
        Measurements by format.

    Raises:
        UserError: an unknown format, or one that this data or these augmentations do not have.
    """
    config = replace(config, devices=1, num_nodes=1)  # of one process
    formats = formats or _default_formats(config)
    for name in formats:
        check_one_of("--format", name, FORMATS)
    check_range("--seconds", seconds, Range(0, 3, above=True))
    check_range("--rounds", rounds, Range(1, 3))
    configs = {name: _with_format(config, name) for name in formats}
    operations = _operations(config)
    found = {name: Measurement(without={op: [] for op in operations}) for name in formats}
    total = rounds * len(formats) * (1 + len(operations))
    with progress_bar() as bar:
        task = bar.add_task("loaders", total=total)
        for _ in range(rounds):
            for name, own in configs.items():
                found[name].add(*measure(own, seconds, name))
                bar.advance(task)
            for op in operations:
                for name, own in configs.items():
                    found[name].without[op].append(measure(_without(own, op), seconds, name)[0])
                    bar.advance(task)
    return found


def print_loaders(
    config: RunConfig,
    found: dict[str, Measurement],
    csv: Path | None = None,
    same: Row | None = None,
) -> None:
    """Prints measurements as two tables, and writes them with versions and hardware as csv.

    Args:
        config: that `bench_loaders` was given.
        found: what it returned.
        csv: file to write, one row a loader.
        same: further columns of the csv, the same in all rows.
    """
    views = sum(view.count for view in parse_views(config.augmentations, config.data.image_size))
    rows = [_row(name, m, views, next(iter(found.values())).rate) for name, m in found.items()]
    rounds = max(len(m.images_per_second) for m in found.values())
    about = {
        "dataset": config.data.dataset,
        "image_size": config.data.image_size,
        "views": views,
        "batch_size": config.optimizer.batch_size,
        "workers": num_workers(replace(config, devices=1)),
        "rounds": rounds,
    }
    print_rows(
        ", ".join(f"{key} {value}" for key, value in about.items()),
        rows,
        "spread: half of the way from the slowest round to the fastest",
    )
    costs = {name: {op: m.milliseconds(op) for op in m.without} for name, m in found.items()}
    operations = list(next(iter(costs.values())))
    if operations:
        print_rows(
            "ms for 1,000 images that an operation costs (against doing without it)",
            [{"operation": op, **{name: costs[name][op] for name in costs}} for op in operations],
        )
    if csv is not None:
        spelled = [
            row | {f"ms/1000 {op}": cost for op, cost in costs[row["format"]].items()}
            for row in rows
        ]
        device = "cuda" if _on_gpu(config) else "cpu"
        write_rows(csv, spelled, {"device": device, **about, **(same or {})})


def _row(name: str, m: Measurement, views: int, first: float) -> dict[str, Any]:
    return {
        "format": name,
        "images/s": m.rate,
        "spread": (max(m.images_per_second) - min(m.images_per_second)) / 2,
        "views/s": m.rate * views,
        "ratio": m.rate / first,
        "cores": statistics.median(m.cores),
        "MiB": m.memory,
        "device MiB": m.device_memory,
    }


def _default_formats(config: RunConfig) -> list[str]:
    from solo_minent.host.shared import PIXEL_SETS

    folder = config.data.dataset in FOLDER_SETS
    formats = ["image_folder", "dali" if folder else "device"]
    if not folder and config.data.dataset not in PIXEL_SETS:
        return formats
    for name in PEERS if folder else ("solo-learn",):
        try:
            _with_format(config, name)
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            formats.append(name)
    return formats


def _with_format(config: RunConfig, name: str) -> RunConfig:
    """The config of a loader; raises UserError where there is none."""
    own = check(replace(config, data=replace(config.data, format=PEERS.get(name, name))))
    if name not in PEERS:
        return own
    from solo_minent import host

    mean, std = map(list, normalization(own.data))
    data = replace(own.data, mean=mean, std=std, num_workers=num_workers(own))
    own = replace(own, data=data)
    host.fit_data(own)  # raises where it cannot
    return own


def _operations(config: RunConfig) -> list[str]:
    """The operations that some view has."""
    return [op for op in SWITCHES if any(entry.get(op) for entry in config.augmentations)]


def _without(config: RunConfig, operation: str) -> RunConfig:
    entries = copy.deepcopy(config.augmentations)
    for entry in entries:
        entry.pop(operation, None)
        if entry.get("order"):
            entry["order"] = [name for name in entry["order"] if name != operation]
    return replace(config, augmentations=entries)


def measure(config: RunConfig, seconds: float, name: str = "") -> tuple[float, float, float, float]:
    """(images a second, busy cores, MiB, MiB of the device) of a fresh loader.

    Args:
        config: its `data.format` is measured,
        name: or this one of `PEERS`.
    """
    cuda = _on_gpu(config)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = _memory()
    batches = _endless(_open(name, config))
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        _arrive(next(batches), cuda)
    images, busy, start = 0, _cpu_seconds(), _wait(cuda)
    while not images or time.perf_counter() - start < seconds:
        images += _arrive(next(batches), cuda)
    elapsed = _wait(cuda) - start
    cores = (_cpu_seconds() - busy) / elapsed
    memory = max(_memory() - before, 0) / 2**20
    device = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
    batches.close()
    return images / elapsed, cores, memory, device


def _open(name: str, config: RunConfig) -> Any:
    images = pretrain_images(config)  # what is wrong with them shows here
    if name not in PEERS:
        return pretrain_loader(config, images)
    from solo_minent.host.peers import own_loader

    return own_loader(config)


def _on_gpu(config: RunConfig) -> bool:
    return config.accelerator != "cpu" and torch.cuda.is_available()


def _endless(loader: Any) -> Iterator[list]:
    for epoch in itertools.count():
        if hasattr(loader, "set_epoch"):  # solo-learn's have none
            loader.set_epoch(epoch)
        yield from loader


def _arrive(batch: list, cuda: bool) -> int:
    """Brings the views to the accelerator, as training does; the number of images."""
    indexes, views, _ = batch
    if cuda:
        for view in views:
            view.to("cuda", non_blocking=True)
    return len(indexes)


def _wait(cuda: bool) -> float:
    """The time when the accelerator is done."""
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _memory() -> int:
    """Bytes that this process and its children hold together."""
    total = 0
    for process in _family():
        with contextlib.suppress(psutil.Error):  # it may have ended by now
            held = process.memory_full_info()
            # PSS is Linux's; without /proc/self/smaps psutil knows neither it nor USS.
            total += next(getattr(held, of) for of in ("pss", "uss", "rss") if hasattr(held, of))
    return total


def _cpu_seconds() -> float:
    total = 0.0
    for process in _family():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
