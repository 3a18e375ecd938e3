"""When a run is said to be collapsing, and in which words. Torch-free: logged numbers in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from solo_minent.methods import SSLMethod

# One epoch may be an accident of its batch: a short epoch is looked at once.
PATIENCE = 2
# A tenth of the least of the four digits recipes, 0.50 (CorInfoMax, epoch 1); constant heads give
# 0, runs that a learning rate of 1 broke less than 0.03.
LOWEST_STD = 0.05
# At 1.5 about 96 % of the sum of singular values belong to one direction, the mean feature. Not
# higher: features of an untrained ViT are nearly alike. The digits recipes were at 39 and more.
LOWEST_RANK = 1.5
# Mutual information of image and class, as a share of ln C: 0 if all images get one prediction.
# The digits recipes begin with 0.03.
LEAST_INFORMATION = 0.01
# At half of ln C, exp(entropy) is sqrt(C) classes. Both methods drive the classes apart: the digits
# recipes keep 0.91 and more, MinEnt with norm=none falls to 0.31.
LEAST_USAGE = 0.5

CALMER = "Try a lower optimizer.lr or a longer scheduler.warmup_epochs, in a run with another name."
ADVICE = {
    "minent": "Try method_kwargs.norm=bn and a lower optimizer.lr, in a run with another name.",
    "twist": "Try a lower optimizer.lr or a higher method_kwargs.lam2, in a run with another name.",
    "mec": "Try a higher method_kwargs.eps, in a run with another name.",
    "corinfomax": "Try a method_kwargs.output_dim well below the batch size, a lower "
    "method_kwargs.alpha or a lower optimizer.lr, in a run with another name.",
}


class Sign(NamedTuple):
    """Something that a collapsing run shows.

    Attributes:
        key: its name, the same in every epoch.
        seen: what is seen, in words and numbers.
        advice: what to try.
        patience: epochs that it has to last.
        verdict: what it means.
    """

    key: str
    seen: str
    advice: str
    patience: int = PATIENCE
    verdict: str = "is collapsing"


class Watch:
    """Says once in a run's life, across restarts, that it is collapsing.

    Attributes:
        since: first epoch of each sign that has been there without a break since.
        warned: epoch of the warning; None before.
    """

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self.warned: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"since": dict(self.since), "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.since, self.warned = dict(state["since"]), state["warned"]

    def judge(
        self, method: SSLMethod, logged: Mapping[str, float], rows: int, epoch: int
    ) -> str | None:
        """Takes in the numbers of an epoch.

        Args:
            method: the method that is trained.
            logged: metrics of the epoch, `{"monitor_effective_rank": 1.3, …}`.
            rows: images that the monitors looked at.
            epoch: of the numbers, counted from 1.

        Returns:
            The warning, if it is time for it.
        """
        found = signs(method, logged, rows)
        self.since = {sign.key: self.since.get(sign.key, epoch) for sign in found}
        lasting = [s for s in found if epoch - self.since[s.key] + 1 >= s.patience]
        if not lasting or self.warned is not None:
            return None
        self.warned = epoch
        first = min(self.since[sign.key] for sign in lasting)
        seen = "; ".join(sign.seen for sign in lasting)
        return (
            f"warning: this run {lasting[0].verdict}, since epoch {first}: {seen}. "
            f"{lasting[0].advice} The columns monitor_* of log.csv show its course. "
            "This is said once."
        )


def signs(method: SSLMethod, logged: Mapping[str, float], rows: int) -> list[Sign]:
    """What speaks for a collapse in the numbers of an epoch; the plainest sign comes first."""
    figure = {k.removeprefix("monitor_"): v for k, v in logged.items() if k.startswith("monitor_")}
    found = []
    std, rank = figure.get("embedding_std"), figure.get("effective_rank")
    if std is not None and std < LOWEST_STD:
        seen = f"embedding deviation {std:.2g} (1 is isotropic), all images get the same embedding"
        found.append(Sign("embedding_std", seen, CALMER))
    if rank is not None and rank < LOWEST_RANK:
        most = min(rows, method.features_dim)
        seen = f"effective rank {rank:.2f} of {most}, all images get the same features"
        found.append(Sign("effective_rank", seen, CALMER))
    if "class_usage" in figure:
        found += _of_classes(method, figure, rows)
    if "spectral_radius" in figure:
        found += _of_series(method, figure["spectral_radius"], logged)
    if "logdet1" in figure:
        found += _of_covariance(method, figure)
    return found


def _of_classes(method: SSLMethod, figure: Mapping[str, float], rows: int) -> list[Sign]:
    usage, sharpness = figure["class_usage"], figure["sharpness"]
    widths = class_counts(method)
    # So many sure predictions can spread no further: two views of each image.
    most = sum(min(1.0, math.log(2 * rows) / math.log(n)) for n in widths) / len(widths)
    if usage < LEAST_USAGE * most:
        what = (
            f"few classes take all images (usage {usage:.2f} of 1, {figure['dead_classes']:.0f} of "
            f"{sum(widths)} classes were given to no image)"
        )
    elif usage - sharpness < LEAST_INFORMATION:
        what = f"predictions do not depend on the image (each has {sharpness:.3f} of the entropy)"
    else:
        return []
    return [Sign("classes", what, ADVICE[method.name])]


def _of_series(method: SSLMethod, radius: float, logged: Mapping[str, float]) -> list[Sign]:
    """Beyond n^(1 / (n - 1)) the last term of the series, r^n / n, outweighs the first, r.

    One epoch is enough to say so: on digits with d / eps = 32 the loss was -0.85 in the epoch when
    the radius first was, -1.9 in the next and -200 in the end. No logarithm passes -1: with the
    singular values s of C, ln |det(I + C)| <= sum ln(1 + s) <= sum s <= m / lamda_inv.
    """
    order = method.params.order
    loss = logged.get("train_mec_loss_epoch", 0.0)
    if loss < -1:
        what = f"loss {loss:.3g}, below the -1 that a log-determinant cannot pass"
    elif radius > order ** (1 / (order - 1)):
        what = "MEC's series is no logarithm any more, its loss may fall without bound"
    else:
        return []
    what += f" (spectral radius {radius:.2f}, it converges below 1)"
    return [Sign("series", what, ADVICE[method.name], patience=1, verdict="is running away")]


def class_counts(method: SSLMethod) -> list[int]:
    """Classes of each head of MinEnt or TWIST."""
    if method.name == "minent":
        return list(method.params.heads)
    return [method.params.output_dim]


def _of_covariance(method: SSLMethod, figure: Mapping[str, float]) -> list[Sign]:
    d, eps = method.params.output_dim, method.params.eps
    lowest = min(figure["logdet1"], figure["logdet2"]) / d
    # From all directions alike (trace 1) to none at all.
    best, worst = -math.log(d), math.log(eps)
    if lowest >= (best + worst) / 2:
        return []
    what = (
        f"log-determinant {lowest:.1f} a dimension, from {best:.1f} (isotropic) to {worst:.1f} "
        f"(a point): about {(best - lowest) / (best - worst):.0%} of the directions are empty"
    )
    return [Sign("covariance", what, ADVICE[method.name])]
