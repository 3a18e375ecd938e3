"""Time and memory of things that do the same, in turn within one run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one side is than another: of every pair of turns, then the median.

    Attributes:
        value: the median.
        low: the smallest of the pairs.
        high: the largest.
        pairs: how many.
    """

    value: float
    low: float
    high: float
    pairs: int


def ratio(seconds: list[float], peer: list[float]) -> Ratio:
    """How many times faster `seconds` are than the `peer`'s, turn by turn."""
    each = [theirs / own for own, theirs in zip(seconds, peer, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each), len(each))


def in_turn(
    sides: Mapping[str, Run], pairs: int = 5, seconds: float = 0.2
) -> dict[str, list[float]]:
    """Times all sides in turn, `pairs` times: a busy moment of the machine hits them all.

    Every other turn goes backwards, so that no side always runs on the caches of the same other.
    Kernels are made and memory is taken before the clock starts; an accelerator is waited for.

    Args:
        sides: what to run, by name.
        pairs: turns of each.
        seconds: a turn repeats its side until it takes about so long.

    Returns:
        Seconds of one call, by name, one figure a turn.
    """
    # Not torch.utils.benchmark's Timer: it runs twice more before each turn.
    timers = {name: timeit.Timer(run, timer=_clock) for name, run in sides.items()}
    calls = {}
    for name, timer in timers.items():
        timer.timeit(2)
        calls[name] = max(round(seconds / timer.timeit(1)), 1)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(pairs):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(timers[name].timeit(calls[name]) / calls[name])
    return found


def _clock() -> float:
    """The time when the accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(run: Run, device: torch.device) -> int:
    """The most bytes of tensors that `run` holds at once beyond those that were there before.

    On the CPU it is what the profiler saw PyTorch take and give back.
    """
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event["name"] == "[memory]"]
    held = most = 0
    for event in sorted(steps, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most
