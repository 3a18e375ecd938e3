"""TWIST: twin class distributions, consistent, sharp and diverse.

Paper: Wang et al., "Self-Supervised Learning by Estimating Twin Class Distributions", IEEE TIP 32
(2023), arXiv 2110.07402. Recipe: github.com/bytedance/TWIST @ 796d36e. The self-labelling stage
crops harder in a recipe with `late_augmentations`.

Deviation: each view goes through the backbone by itself, as in solo-learn, and its batch norms see
one view at a time; the original's see all crops of one size together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from solo_minent.allowed import MAX_DIM, Range, check_one_of, check_ranges, check_rising
from solo_minent.distributed import group_mean, world_size
from solo_minent.errors import UserError
from solo_minent.losses import (
    twist_multicrop_loss_terms,
    twist_self_label_loss_func,
    twist_teacher_loss_terms,
)
from solo_minent.methods.base import Progress, SSLMethod, Views, mlp
from solo_minent.schedules import cosine

RANGES = {
    "hidden_dim": Range(1, 4096, high=MAX_DIM),
    "output_dim": Range(2, 4096, high=MAX_DIM),
    "bunch_size": Range(2, 256),
    "lam1": Range(-1, 0),
    "lam2": Range(0, 1),
    "tau": Range(0, 1, above=True),
    "eps": Range(0, 1e-5, above=True),
    "self_label_epoch": Range(0, "null"),
    "quantile_start": Range(0, 0.5, high=1, above=True, below=True),
    "quantile_end": Range(0, 0.6, high=1, above=True, below=True),
}


@dataclass
class TWISTParams:
    """Hyper-parameters; defaults are the official ResNet ones on ImageNet (multi-crop).

    Attributes:
        hidden_dim: width of the head's hidden layers.
        output_dim: C, the number of classes that the head estimates.
        activation: relu (ResNets) or gelu (ViTs), in the head.
        head_init: default (torch's) or trunc_normal (ViTs: weights of deviation .02, biases 0).
        lam1: sharpness weighs 1 + lam1 (the paper's alpha); -0.6 for ViTs.
        lam2: weight of diversity (the paper's beta).
        tau: temperature; 1 everywhere in the paper.
        eps: added to probabilities inside a logarithm.
        bunch_size: images whose views share the statistics of the batch norm before the softmax.
        momentum_teacher: an EMA teacher gives the targets (ViTs).
        base_momentum: of the EMA teacher at the first step.
        final_momentum: of the EMA teacher when the first stage ends.
        self_label_epoch: first epoch of the self-labelling stage; None for no second stage.
        quantile_start: share of a batch that labels itself when that stage starts.
        quantile_end: the same when the run ends.
    """

    hidden_dim: int = 4096
    output_dim: int = 4096
    activation: str = "relu"
    head_init: str = "default"
    lam1: float = 0.0
    lam2: float = 1.0
    tau: float = 1.0
    eps: float = 1e-5
    bunch_size: int = 256
    momentum_teacher: bool = False
    base_momentum: float = 0.996
    final_momentum: float = 1.0
    self_label_epoch: int | None = None
    quantile_start: float = 0.5
    quantile_end: float = 0.6

    def __post_init__(self) -> None:
        check_one_of("method_kwargs.activation", self.activation, ("relu", "gelu"))
        check_one_of("method_kwargs.head_init", self.head_init, ("default", "trunc_normal"))
        check_ranges(self, RANGES, "method_kwargs.")
        check_rising(self, "base_momentum", "final_momentum", 0.996, "method_kwargs.")
        check_rising(self, "quantile_start", "quantile_end", 0.5, "method_kwargs.")


class BunchNorm(nn.Module):
    """Affine-free batch norm whose statistics pool every view of a bunch of images.

    A bunch is `bunch_size` consecutive images of the global batch, whether they lie on one rank
    (several bunches a rank) or on consecutive ranks (one bunch over several); a batch that is
    smaller than one bunch is a bunch. Running statistics are the mean over this rank's bunches.

    Args:
        num_features: C.
        bunch_size: images of a bunch.
        eps: added to the variance.
        momentum: of the running statistics.
    """

    def __init__(
        self, num_features: int, bunch_size: int, eps: float = 1e-5, momentum: float = 0.1
    ):
        super().__init__()
        self.bunch_size, self.eps, self.momentum = bunch_size, eps, momentum
        self._groups: dict[int, distributed.ProcessGroup] = {}
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Normalises logits.

        Args:
            views: V tensors (B, C), float; B is this rank's batch.

        Returns:
            V tensors (B, C), at least float32.

        Raises:
            UserError: bunches that do not divide the batch, or the other way round.
        """
        x = torch.stack(views)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if not self.training:
            scale = torch.rsqrt(self.running_var + self.eps)
            return list((x - self.running_mean) * scale)
        batch = x.shape[1]
        ranks = self._ranks_per_bunch(batch)
        bunches = max(batch // self.bunch_size, 1)
        x = x.unflatten(1, (bunches, -1))
        group = self._group(ranks)
        mean = group_mean(x.mean((0, 2), keepdim=True), group)
        centred = x - mean
        var = group_mean(centred.square().mean((0, 2), keepdim=True), group)
        rows = x.shape[0] * x.shape[2] * ranks
        self._track(mean.mean(1).flatten(), var.mean(1).flatten() * rows / max(rows - 1, 1))
        return list((centred * torch.rsqrt(var + self.eps)).flatten(1, 2))

    def _ranks_per_bunch(self, batch: int) -> int:
        return ranks_per_bunch(self.bunch_size, batch, world_size())

    def _group(self, ranks: int) -> distributed.ProcessGroup | None:
        if ranks == 1:
            return None
        if ranks not in self._groups:
            self._groups[ranks], _ = distributed.new_subgroups(group_size=ranks)
        return self._groups[ranks]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_groups": {}}  # they can be neither copied nor saved

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(var.to(self.running_var), self.momentum)


def ranks_per_bunch(bunch_size: int, batch: int, world: int) -> int:
    """Ranks that share a bunch, of `world` ranks with `batch` images each.

    Raises:
        UserError: bunches that do not divide the batch, or the other way round.
    """
    ranks = 1 if batch >= bunch_size else min(bunch_size // batch, world)
    if batch > bunch_size and batch % bunch_size or world % ranks:
        raise UserError(
            f"TWIST bunches do not fit: bunch_size={bunch_size}, {batch} images a rank, "
            f"{world} ranks. Bunches must divide the global batch evenly. "
            "Set method_kwargs.bunch_size to the batch size of one rank."
        )
    return ranks


class TwistHead(nn.Module):
    """MLP over all views at once, then the bunch norm: V x (B, F) -> V x (B, C)."""

    def __init__(self, features_dim: int, params: TWISTParams):
        super().__init__()
        activation = nn.ReLU if params.activation == "relu" else nn.GELU
        width = params.hidden_dim
        dims = [features_dim, width, width, params.output_dim]
        self.mlp = mlp(dims, activation=activation)
        self.norm = BunchNorm(params.output_dim, params.bunch_size)
        if params.head_init == "trunc_normal":
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)

    def forward(self, feats: list[Tensor]) -> list[Tensor]:
        logits = self.mlp(torch.cat(feats))
        return self.norm(list(logits.split([len(f) for f in feats])))


class TWIST(SSLMethod):
    """Class distributions of views agree; optionally a teacher, optionally a second stage."""

    name = "twist"
    Params = TWISTParams
    multicrop = True
    joint_projection = True
    monitors = ("consistency", "sharpness", "diversity")

    @property
    def teacher(self) -> bool:
        return self.params.momentum_teacher

    @classmethod
    def check_batch(cls, params: dict[str, Any], batch: int, ranks: int) -> None:
        ranks_per_bunch(params["bunch_size"], batch, ranks)

    def build(self, params: TWISTParams) -> None:
        self.projector = TwistHead(self.features_dim, params)

    def first_stage_epochs(self, progress: Progress) -> int:
        """Epochs before the self-labelling stage."""
        start = self.params.self_label_epoch
        return progress.total_epochs if start is None else min(start, progress.total_epochs)

    def teacher_momentum(self, progress: Progress) -> float:
        """As every teacher's, but it reaches its end with the first stage."""
        steps = self.first_stage_epochs(progress) * progress.steps_per_epoch
        p = self.params
        return cosine(p.base_momentum, p.final_momentum, progress.step / steps if steps else 1.0)

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        if progress.epoch >= self.first_stage_epochs(progress):
            return self._self_label_terms(views, progress)
        if self.teacher:
            terms = twist_teacher_loss_terms(views.z, views.teacher_z, p.tau, p.eps)
        else:
            terms = twist_multicrop_loss_terms(views.z, views.num_large, p.tau, p.eps)
        loss = (
            terms["consistency"] + (1 + p.lam1) * terms["sharpness"] - p.lam2 * terms["diversity"]
        )
        return {"loss": loss, **terms}

    def _self_label_terms(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        first = self.first_stage_epochs(progress) * progress.steps_per_epoch
        t = (progress.step - first) / (progress.total_steps - first)
        quantile = cosine(p.quantile_start, p.quantile_end, t)
        loss = twist_self_label_loss_func(
            views.z, quantile, p.tau, teacher_logits=views.teacher_z or None
        )
        with torch.no_grad():  # not optimised in this stage, but they still tell its health
            terms = twist_multicrop_loss_terms(views.z, views.num_large, p.tau, p.eps)
        return {"loss": loss, "sharpness": terms["sharpness"], "diversity": terms["diversity"]}
