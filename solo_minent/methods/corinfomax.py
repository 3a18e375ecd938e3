"""CorInfoMax: information maximisation through the log-determinants of two covariances.

Paper: Ozsoy et al., "Self-Supervised Learning with an Information Maximization Criterion",
NeurIPS 2022, arXiv 2209.07999. Recipe: github.com/serdarozsoy/corinfomax-ssl @ c0b917e.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solo_minent.allowed import MAX_DIM, Range, check_ranges
from solo_minent.losses import CorInfoMaxLoss
from solo_minent.methods.base import Progress, SSLMethod, Views, mlp

RANGES = {
    "hidden_dim": Range(1, 2048, high=MAX_DIM),
    "output_dim": Range(1, 64, high=MAX_DIM),
    "la_R": Range(0, 0.01, high=1, below=True),
    "la_mu": Range(0, 0.01, high=1, below=True),
    "alpha": Range(0, 250),
    "eps": Range(0, 1e-8, above=True),
    "R_ini": Range(0, 1, above=True),
}


@dataclass
class CorInfoMaxParams:
    """Hyper-parameters; defaults are the official CIFAR-10 ones.

    Attributes:
        hidden_dim: width of the projector's hidden layers.
        output_dim: D, the embedding's dimension; keep it below the batch size.
        batch_norm: batch norm in the projector (officially on ImageNet-1k only).
        alpha: weight of the invariance term.
        la_R: weight of the PAST in the running covariance, in [0, 1).
        la_mu: weight of the PAST in the running mean, in [0, 1).
        eps: added to the covariance's diagonal.
        R_ini: the covariance starts as this multiple of the identity.
        normalize: L2-normalise the embeddings first.
    """

    hidden_dim: int = 2048
    output_dim: int = 64
    batch_norm: bool = False
    alpha: float = 250.0
    la_R: float = 0.01
    la_mu: float = 0.01
    eps: float = 1e-8
    R_ini: float = 1.0
    normalize: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, RANGES, "method_kwargs.")


class CorInfoMax(SSLMethod):
    """Two views, one network; the loss keeps a running mean and covariance of each view."""

    name = "corinfomax"
    Params = CorInfoMaxParams
    monitors = ("logdet",)

    def build(self, params: CorInfoMaxParams) -> None:
        width = params.hidden_dim
        self.projector = mlp(
            [self.features_dim, width, width, params.output_dim],
            batch_norm=params.batch_norm,
            output_bias=False,
        )
        self.criterion = CorInfoMaxLoss(
            params.output_dim,
            params.alpha,
            params.la_R,
            params.la_mu,
            params.eps,
            params.R_ini,
            params.normalize,
        )

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        terms = self.criterion.terms(*views.z)
        return {"loss": self.params.alpha * terms["invariance"] - terms["logdet"], **terms}
