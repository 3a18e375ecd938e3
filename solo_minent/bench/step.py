"""What a training step costs: beside solo-learn's, and phase by phase.

bench_step(configs, pairs, seconds)    -> rows: one a side; whole steps beside solo-learn's
bench_phases(configs, pairs, seconds)  -> rows: one a phase of each method's step
bench_loop(configs, pairs, steps)      -> rows: loader, bare backbone, step, loop in images/s
step_configs(methods, overrides)       -> the CIFAR-10 recipes, for all three
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_minent.bench.loop import bench_loop, check_loop
from solo_minent.bench.pairs import in_turn, peak_memory, ratio
from solo_minent.bench.sides import (
    METHODS,
    Side,
    about,
    bench_images,
    device_of,
    one_batch,
    step_configs,
    to_device,
)
from solo_minent.console import progress_bar
from solo_minent.data.loaders import pretrain_loader
from solo_minent.host.peers import PEERS
from solo_minent.methods import Views
from solo_minent.schema import RunConfig

__all__ = ["METHODS", "bench_loop", "bench_phases", "bench_step", "check_loop", "step_configs"]

# Beside the step: where workers load or the device copies by itself, they take none of its time.
BESIDE = ("data", "host to device")
PHASES = (
    *("backbone forward", "classifier", "teacher", "heads forward", "loss"),
    *("heads and loss backward", "backbone backward", "optimiser", "logging"),
)
GOAL = "heads and loss"


def bench_step(
    configs: Sequence[RunConfig], pairs: int = 5, seconds: float = 0.2
) -> list[dict[str, Any]]:
    """Whole training steps on views that are there, beside solo-learn's, in turn.

    All sides have the run's backbone, batch, optimiser and precision; see `Side`.

    Args:
        configs: of `step_configs`.
        pairs: turns of each side.
        seconds: a turn repeats a step until it takes about so long.

    Returns:
        Rows with columns: method, backbone, device, batch, precision, side ("solo_minent",
        "barlow_twins" or "vicreg"), pairs, ms, low, high (of a step: the median, the fastest and
        the slowest turn), MiB (of tensors, the most a step holds at once), ratio, "ratio low",
        "ratio high" (how many times faster ours is than this side, turn by turn; 1 of ours).
    """
    rows = []
    for config in _shown(configs, "steps"):
        batch = to_device(one_batch(config), device_of(config))
        sides = {"solo_minent": Side(config, batch)}
        sides |= {name: Side(config, batch, peer=name) for name in PEERS}
        found = in_turn(sides, pairs, seconds)
        for name, side in sides.items():
            faster = ratio(found["solo_minent"], found[name])
            rows.append(
                {
                    **about(config),
                    "side": name,
                    "pairs": pairs,
                    **_milliseconds(found[name]),
                    "MiB": peak_memory(side, side.device) / 2**20,
                    "ratio": faster.value,
                    "ratio low": faster.low,
                    "ratio high": faster.high,
                }
            )
    return rows


def bench_phases(
    configs: Sequence[RunConfig], pairs: int = 5, seconds: float = 0.2
) -> list[dict[str, Any]]:
    """The phases of each method's step, in turn with the whole step.

    A phase runs alone on what the one before it left: a backward pass on a graph that is kept.
    `PHASES` make up the step, but for "the rest" (accuracies of the classifier, memory taken and
    given back, caches that a phase alone finds filled). `BESIDE` are the next batch out of the
    run's own loader, nothing else running, and its copy to the device. `GOAL` is forward and
    backward of heads and loss on features that are there.

    Args:
        configs: of `step_configs`.
        pairs: turns of each phase.
        seconds: a turn repeats a phase until it takes about so long.

    Returns:
        Rows with columns: method, backbone, device, batch, precision, phase, pairs, ms, low, high
        (median, fastest and slowest turn), share, "share low", "share high" (of the step of the
        same turn; median and spread). Phases: step, those of `PHASES`, the rest, `GOAL`, those of
        `BESIDE`.
    """
    rows = []
    for config in _shown(configs, "phases"):
        batch, device = one_batch(config), device_of(config)
        there = to_device(batch, device)
        step = Side(config, there)
        step()  # makes gradients for an update
        # A graph that is kept is one of weights that stay: they are not those that are trained.
        runs = {"step": step, "optimiser": step.optimizer.step}
        runs |= _Phases(Side(config, there)).runs()
        runs["host to device"] = lambda of=batch, at=device: to_device(of, at)
        for group in step.optimizer.param_groups:
            group["lr"] = 0.0  # thousands of updates by one gradient would end in NaN
        found = in_turn(runs, pairs, seconds)
        # Afterwards: its workers would load on while other phases are timed.
        found |= in_turn({"data": _next_of(config)}, pairs, seconds)
        whole = found.pop("step")
        parts = zip(*(found[name] for name in PHASES), strict=True)
        rest = [step - sum(part) for step, part in zip(whole, parts, strict=True)]
        ordered = {"step": whole, **{name: found[name] for name in PHASES}, "the rest": rest}
        ordered |= {name: found[name] for name in (GOAL, *BESIDE)}
        for name, times in ordered.items():
            shares = [own / step for own, step in zip(times, whole, strict=True)]
            rows.append(
                {
                    **about(config),
                    "phase": name,
                    "pairs": pairs,
                    **_milliseconds(times),
                    "share": statistics.median(shares),
                    "share low": min(shares),
                    "share high": max(shares),
                }
            )
    return rows


def _shown(configs: Sequence[RunConfig], what: str) -> Iterator[RunConfig]:
    with progress_bar() as bar:
        yield from bar.track(configs, description=what)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {
        "ms": 1e3 * statistics.median(seconds),
        "low": 1e3 * min(seconds),
        "high": 1e3 * max(seconds),
    }


def _next_of(config: RunConfig) -> Callable[[], Any]:
    loader = pretrain_loader(config, bench_images(config))

    def batches() -> Iterator[list]:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    endless = batches()
    return lambda: next(endless)


class _Phases:
    """What a step of our method does, piece by piece, on tensors that it made once."""

    def __init__(self, side: Side) -> None:
        self.side, self.module = side, side.module
        side()  # for what it logs
        self.module.meter.reset()
        self.views, self.targets = side.batch[1], side.batch[2]
        self.feats = self.backbone()
        self.own = [feats.detach().requires_grad_() for feats in self.feats]
        self.teacher_z = self.teacher()
        self.z = self.heads()
        self.leaves = _detached(self.z)
        self.total = self._loss_of(self.z)["loss"]
        self.wanted = [*self.module.projector.parameters(), *self.own]
        self.wanted += [p for p in self._other_parameters() if p.requires_grad]
        self.weights = [p for p in self.module.backbone.parameters() if p.requires_grad]
        self.terms = {f"train_{name}": term for name, term in self.module.terms.items()}
        self.grads = [torch.ones_like(feats) / feats.numel() for feats in self.feats]

    def runs(self) -> dict[str, Callable[[], Any]]:
        return {
            "backbone forward": self.backbone,
            "classifier": self.classifier,
            "teacher": self.teacher,
            "heads forward": self.heads,
            "loss": lambda: self._loss_of(self.leaves),
            "heads and loss backward": self.heads_backward,
            "backbone backward": self.backbone_backward,
            "logging": lambda: self.module.log_dict(self.terms),
            GOAL: self.heads_and_loss,
        }

    def backbone(self) -> list[Tensor]:
        with self.side.autocast():
            return [self.module.backbone(view) for view in self.views]

    def classifier(self) -> None:
        """The online classifier of solo-learn, without its accuracies."""
        with self.side.autocast():
            logits = [self.module.classifier(feats.detach()) for feats in self.feats]
            loss = sum(F.cross_entropy(each, self.targets) for each in logits)
        torch.autograd.grad(loss, list(self.module.classifier.parameters()))

    def teacher(self) -> list[Any]:
        module = self.module
        if not module.teacher:
            return []
        with torch.no_grad(), self.side.autocast():
            large = self.views[: module.num_large_crops]
            feats = [module.teacher_backbone(view) for view in large]
            found = module._project(module.teacher_projector, feats)
        module.update_teacher(self.side.progress())
        return found

    def heads(self) -> list[Any]:
        with self.side.autocast():
            return self.module._project(self.module.projector, self.own)

    def heads_backward(self) -> None:
        torch.autograd.grad(self.total, self.wanted, retain_graph=True, allow_unused=True)

    def backbone_backward(self) -> None:
        torch.autograd.grad(self.feats, self.weights, self.grads, retain_graph=True)

    def heads_and_loss(self) -> None:
        loss = self._loss_of(self.heads())["loss"]
        torch.autograd.grad(loss, self.wanted, allow_unused=True)

    def _loss_of(self, z: list[Any]) -> dict[str, Tensor]:
        views = Views(self.own, z, self.teacher_z, self.module.num_large_crops)
        with self.side.autocast():
            return self.module.ssl_loss(views, self.side.progress())

    def _other_parameters(self) -> list[Tensor]:
        """The method's own besides the projector's: a predictor's."""
        projector = set(self.module.projector.parameters())
        groups = [list(group["params"]) for group in self.module.extra_params()]
        return [p for params in groups for p in params if p not in projector]


def _detached(z: Any) -> Any:
    if isinstance(z, Tensor):
        return z.detach().requires_grad_()
    return type(z)(_detached(each) for each in z)
