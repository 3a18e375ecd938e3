"""How much of the backbone's speed the training loop keeps."""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from solo_minent.bench.sides import Side, about, bench_images, device_of, one_batch, to_device
from solo_minent.data.loaders import pretrain_loader
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain
from solo_minent.schema import RunConfig
from solo_minent.training.stopping import Stopped

PREFETCHED = 2  # batches of each worker, PyTorch's default


def bench_loop(
    configs: Sequence[RunConfig], pairs: int = 5, steps: int = 5
) -> list[dict[str, Any]]:
    """Images a second of each method's loader, bare backbone, step and training loop.

    The loop is `pretrain`'s own, with all its callbacks; an epoch's end, evaluations and
    checkpoints are not in it. Between two batches it makes room for windows of the other two, so
    that all three take turns in one process, with the same threads. Each window begins after steps
    that are not counted: as many as the loader's workers have batches ready, and one.

        loader         the run's own, nothing else running, batches brought to the device
        bare backbone  forward and backward of all views, on a batch that is there, under the run's
                       autocast and memory format; no head, no loss, no optimiser
        step           a whole training step on a batch that is there (`Side`), without Lightning,
                       callbacks and data: what the loop could reach with these heads and this loss
        loop           of `pretrain`

    Args:
        configs: of `step_configs`.
        pairs: windows of each.
        steps: of a window.

    Returns:
        Rows with columns: method, backbone, device, batch, precision, format, part, pairs,
        images/s, low, high (median, slowest and fastest window), ratio, "ratio low", "ratio high"
        (to the bare backbone's of the same turn).

    Raises:
        UserError: an epoch is too short for a window.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGUSR1.
    """
    rows = []
    for config in configs:
        check_loop(config, steps)
        bare = _windows(config, pairs, steps)
        loader = {"loader": _loader_windows(config, pairs, steps)}
        size = config.optimizer.batch_size * steps
        for part, seconds in (loader | bare).items():
            rates = [size / each for each in seconds]
            ratios = [
                theirs / own for own, theirs in zip(seconds, bare["bare backbone"], strict=True)
            ]
            rows.append(
                {
                    **about(config),
                    "format": config.data.format,
                    "part": part,
                    "pairs": pairs,
                    "images/s": statistics.median(rates),
                    "low": min(rates),
                    "high": max(rates),
                    "ratio": statistics.median(ratios),
                    "ratio low": min(ratios),
                    "ratio high": max(ratios),
                }
            )
    return rows


def check_loop(config: RunConfig, steps: int) -> None:
    """Raises UserError where windows of `steps` cannot be measured: before anything else is."""
    about(config)
    batches = len(bench_images(config)) // config.optimizer.batch_size
    needed = _settle(config) + steps + 1
    if batches < needed:
        raise UserError(
            f"epoch is too short to be measured: {batches} batches. A window needs {needed}. Lower "
            "optimizer.batch_size."
        )


class _Enough(Exception):
    """All windows are measured."""


class _Turns(Callback):
    """Measures windows of the loop that it is part of, and of others in the gaps between them."""

    def __init__(
        self, others: dict[str, Callable[[], Any]], pairs: int, steps: int, settle: int
    ) -> None:
        self.others, self.pairs, self.steps, self.settle = others, pairs, steps, settle
        self.seconds: dict[str, list[float]] = {name: [] for name in (*others, "loop")}
        self.done = 0  # steps of the window under way, with those that are not counted
        self.start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.done = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self.done == self.settle:
            self.start = _now(module.device)
        if self.done == self.settle + self.steps:
            self.seconds["loop"].append(_now(module.device) - self.start)
            self._others(module.device)
            self.done = 0
            return
        self.done += 1

    def _others(self, device: torch.device) -> None:
        turn = len(self.seconds["loop"])
        for name in list(self.others)[:: 1 if turn % 2 else -1]:
            run = self.others[name]
            run()
            start = _now(device)
            for _ in range(self.steps):
                run()
            self.seconds[name].append(_now(device) - start)
        if turn == self.pairs:
            raise _Enough


def _windows(config: RunConfig, pairs: int, steps: int) -> dict[str, list[float]]:
    batch = to_device(one_batch(config), device_of(config))
    step = Side(config, batch)
    backbone = copy.deepcopy(step.module.backbone)
    views = batch[1]

    def bare() -> None:
        backbone.zero_grad(set_to_none=True)
        with step.autocast():
            feats = [backbone(view) for view in views]
        torch.autograd.backward(feats, [torch.ones_like(each) for each in feats])

    turns = _Turns({"bare backbone": bare, "step": step}, pairs, steps, _settle(config))
    with tempfile.TemporaryDirectory() as folder:
        # A window has no evaluation in it; that of the untrained network would only take time.
        own = replace(config, folder=folder, evaluation=replace(config.evaluation, knn_every=0))
        try:
            pretrain(own, images=bench_images(own), observers=[turns])
        except _Enough:
            return turns.seconds
        except Stopped:  # it has saved, but nobody goes on with this run
            raise KeyboardInterrupt from None
    raise UserError(
        f"run is too short to be measured: {config.max_epochs} epochs. {pairs} windows of {steps} "
        "steps are needed. Raise max_epochs."
    )


def _loader_windows(config: RunConfig, pairs: int, steps: int) -> list[float]:
    loader, device = pretrain_loader(config, bench_images(config)), device_of(config)

    def batches() -> Iterator[list]:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    endless, found = batches(), []
    for _ in range(_settle(config)):
        to_device(next(endless), device)
    for _ in range(pairs):
        start = _now(device)
        for _ in range(steps):
            to_device(next(endless), device)
        found.append(_now(device) - start)
    endless.close()
    return found


def _settle(config: RunConfig) -> int:
    ahead = config.data.format in ("image_folder", "h5") and config.data.num_workers
    return 1 + PREFETCHED * int(ahead)


def _now(device: torch.device) -> float:
    """The time when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
