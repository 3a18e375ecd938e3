"""MEC: maximum entropy coding of a batch, by a truncated log-determinant.

Paper: Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022,
arXiv 2210.11464. Recipe: github.com/xinliu20/MEC @ 35045dc.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solo_minent.allowed import MAX_DIM, Range, check_ranges, check_rising, short
from solo_minent.distributed import world_size
from solo_minent.errors import UserError
from solo_minent.losses import mec_coding_length, mec_loss_func
from solo_minent.methods.base import Progress, SSLMethod, Views, mlp

RANGES = {
    "hidden_dim": Range(1, 2048, high=MAX_DIM),
    "output_dim": Range(1, 2048, high=MAX_DIM),
    "pred_hidden_dim": Range(1, 512, high=MAX_DIM),
    "eps": Range(0, "null", high=1e12, above=True),
    "order": Range(2, 4, high=100),
    "lamda_warmup": Range(1, 8, high=1e6),
    "lamda_warmup_epochs": Range(0, 10),
}


@dataclass
class MECParams:
    """Hyper-parameters; defaults are the official ImageNet ones.

    Attributes:
        hidden_dim: width of the projector's hidden layers.
        output_dim: d, the embedding's dimension.
        pred_hidden_dim: width of the predictor's hidden layer.
        eps: the paper's eps^2, the distortion; None keeps d / eps = 32 as on ImageNet (64 for
            d = 2048). The series needs a spectral radius below 1, about d / eps times the largest
            share of a direction: take a larger eps where few classes dominate a batch.
        order: terms of the Taylor series; even, since an odd one is minimised by collapse.
        lamda_warmup: 1/lambda starts at this multiple of its final value.
        lamda_warmup_epochs: epochs over which it falls, at most the whole run.
        base_momentum: of the EMA teacher at the first step.
        final_momentum: of the EMA teacher at the last step.
    """

    hidden_dim: int = 2048
    output_dim: int = 2048
    pred_hidden_dim: int = 512
    eps: float | None = None
    order: int = 4
    lamda_warmup: float = 8.0
    lamda_warmup_epochs: int = 10
    base_momentum: float = 0.996
    final_momentum: float = 1.0

    def __post_init__(self) -> None:
        if self.order < 2 or self.order % 2:
            raise UserError(
                f"MEC order is not even: {short(self.order)}. An odd Taylor order has its minimum "
                "at the collapsed solution. Set method_kwargs.order=4."
            )
        check_ranges(self, RANGES, "method_kwargs.")
        check_rising(self, "base_momentum", "final_momentum", 0.996, "method_kwargs.")


class MEC(SSLMethod):
    """Student with predictor against an EMA teacher, views crossed."""

    name = "mec"
    Params = MECParams
    teacher = True
    monitors = ("coding_length",)

    def build(self, params: MECParams) -> None:
        d, width = params.output_dim, params.hidden_dim
        self.projector = nn.Sequential(
            *mlp([self.features_dim, width, width, d], hidden_bias=False, output_bias=False),
            nn.BatchNorm1d(d, affine=False),
        )
        self.predictor = mlp([d, params.pred_hidden_dim, d], hidden_bias=False)

    def extra_params(self) -> list[dict]:
        return [
            *super().extra_params(),
            {"name": "predictor", "params": self.predictor.parameters()},
        ]

    def lamda_inv(self, batch: int, progress: Progress) -> float:
        """1/lambda of a step: m eps / d, falling to it in a straight line while warming up.

        Args:
            batch: m, images of the global batch.
            progress: where the run stands.
        """
        d = self.params.output_dim
        final = batch * (self.params.eps or d / 32) / d
        warmup_epochs = min(self.params.lamda_warmup_epochs, progress.total_epochs)
        last = round(warmup_epochs * progress.steps_per_epoch) - 1
        if progress.step >= last:
            return final
        start = self.params.lamda_warmup * final
        return start + (final - start) * progress.step / last

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        z1, z2 = views.made["predicted"] = [self.predictor(z) for z in views.z]
        m, d = len(z1) * world_size(), self.params.output_dim
        lamda_inv = self.lamda_inv(m, progress)
        loss = mec_loss_func(z1, z2, *views.teacher_z, lamda_inv, self.params.order)
        return {
            "loss": loss,
            "coding_length": mec_coding_length(loss.detach(), m, d, lamda_inv),
            "lamda_inv": torch.tensor(lamda_inv),
        }
