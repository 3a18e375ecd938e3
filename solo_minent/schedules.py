"""Schedules as functions of the optimiser step, so that they resume by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import SchedulerConfig

NAMES = ("warmup_cosine", "warmup_multistep")


def cosine(start: float, end: float, t: float) -> float:
    """Half a cosine from `start` (t = 0) to `end` (t >= 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(t, 1.0)))


def lr_factor(
    scheduler: SchedulerConfig, lr: float, steps_per_epoch: int, total_epochs: int
) -> Callable[[int], float]:
    """The learning rate of each step as a multiple of `lr`.

    warm-up is a straight line from `warmup_start_lr` that reaches `lr` on its last point (MEC,
    CorInfoMax); `warmup_cosine` then falls half a cosine to `min_lr`; `warmup_multistep` multiplies
    by `gamma` at each of `lr_decay_epochs`, where a negative epoch counts from the end (MinEnt) and
    is left out in a run too short to have it.
    With `interval: epoch` the rate changes between epochs only (CorInfoMax). `restart_epoch` starts
    a second warm-up and cosine with `restart_lr` as its peak; its lowest rate is the same share of
    that peak (TWIST's self-labelling stage).

    Args:
        scheduler: rates in it are absolute, as `lr` is.
        lr: the peak rate.
        steps_per_epoch: optimiser steps of an epoch.
        total_epochs: epochs of the run.

    Returns:
        Function of the step, counted from 0.

    Raises:
        UserError: unknown name or interval, a restart without its rate or outside the run.
    """
    _check(scheduler, total_epochs)
    unit = 1 if scheduler.interval == "epoch" else steps_per_epoch
    end = total_epochs * unit
    restart = math.inf if scheduler.restart_epoch is None else scheduler.restart_epoch * unit
    warmup = _warmup_points(scheduler, unit, steps_per_epoch)
    decays = [(e if e >= 0 else total_epochs + e) * unit for e in scheduler.lr_decay_epochs]
    decays = [point for point in decays if point > 0]

    def rate(point: int) -> float:
        if point >= restart:
            second = round(scheduler.restart_warmup_epochs * unit)
            peak = scheduler.restart_lr
            low = scheduler.min_lr * peak / lr
            return _warmup_cosine(point - restart, second, end - restart, 0.0, peak, low)
        if scheduler.name == "warmup_cosine":
            start = scheduler.warmup_start_lr
            stage_end = min(restart, end)
            return _warmup_cosine(point, warmup, stage_end, start, lr, scheduler.min_lr)
        base = _warmup_line(point, warmup, scheduler.warmup_start_lr, lr)
        return base * scheduler.gamma ** sum(point >= decay for decay in decays)

    return lambda step: rate(step * unit // steps_per_epoch) / lr


def _warmup_points(scheduler: SchedulerConfig, unit: int, steps_per_epoch: int) -> int:
    if scheduler.warmup_steps is None:
        return round(scheduler.warmup_epochs * unit)
    return round(scheduler.warmup_steps * unit / steps_per_epoch)


def _warmup_line(point: int, warmup: int, start: float, peak: float) -> float:
    if point >= warmup - 1:
        return peak
    return start + (peak - start) * point / (warmup - 1)


def _warmup_cosine(
    point: int, warmup: int, end: int, start: float, peak: float, low: float
) -> float:
    if point < warmup:
        return _warmup_line(point, warmup, start, peak)
    return cosine(peak, low, (point - warmup) / max(end - warmup, 1))


def _check(scheduler: SchedulerConfig, total_epochs: int) -> None:
    if scheduler.name not in NAMES:
        raise UserError(
            f"scheduler is unknown: {scheduler.name}. It is one of {', '.join(NAMES)}. "
            "Set scheduler.name=warmup_cosine."
        )
    if scheduler.interval not in ("step", "epoch"):
        raise UserError(
            f"scheduler interval is unknown: {scheduler.interval}. It is step or epoch. "
            "Set scheduler.interval=step."
        )
    restart = scheduler.restart_epoch
    if restart is not None and (scheduler.restart_lr is None or not 0 < restart < total_epochs):
        raise UserError(
            f"scheduler restart is wrong: epoch {restart} with lr {scheduler.restart_lr} in a run "
            f"of {total_epochs} epochs. It needs an lr and an epoch inside the run. "
            "Set scheduler.restart_epoch=null."
        )
