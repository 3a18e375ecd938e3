"""The plain formula of each loss, as it is read off the papers: what ours is measured against.

Matrix powers are products, every softmax and every head stands for itself, a log-determinant is
`torch.logdet`. Values and gradients equal those of `solo_minent.losses` on one process. Nothing
trains with these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mec(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, lamda_inv: float, order: int = 4) -> Tensor:
    """MEC: both directions, powers of the (m, m) matrix up to `order`, the trace of their sum.

    Args:
        z1, z2: (m, d) of the student.
        p1, p2: (m, d) of the teacher.
        lamda_inv: as in `solo_minent.losses.mec_loss_func`.
        order: terms of the series.
    """
    total = _coding_length(z2, p1, lamda_inv, order) + _coding_length(z1, p2, lamda_inv, order)
    return -lamda_inv * 0.5 * total / len(z1)


def _coding_length(z: Tensor, p: Tensor, lamda_inv: float, order: int) -> Tensor:
    z, p = F.normalize(z), F.normalize(p.detach())
    c = p @ z.T / lamda_inv
    power, series = c, c
    for k in range(2, order + 1):
        power = power @ c
        series = series + (-1) ** (k + 1) / k * power
    return series.trace()


class CorInfoMax:
    """CorInfoMax with its state, one branch after the other.

    Args:
        dim: D, width of the projections.
        alpha: weight of the invariance term.
        la_R, la_mu: weights of the past.
        eps: added to the diagonal.
        device: of the state.
    """

    def __init__(
        self,
        dim: int,
        alpha: float,
        la_R: float = 0.01,
        la_mu: float = 0.01,
        eps: float = 1e-8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.alpha, self.la_R, self.la_mu, self.eps = alpha, la_R, la_mu, eps
        self.identity = torch.eye(dim, dtype=torch.float64, device=device)
        self.R = [self.identity.clone(), self.identity.clone()]
        self.mu = [torch.zeros(dim, dtype=torch.float64, device=device) for _ in range(2)]

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two (N, D) views; the state moves on."""
        z1, z2 = F.normalize(z1), F.normalize(z2)
        logdets = []
        for k, z in enumerate((z1, z2)):
            mu = self.la_mu * self.mu[k] + (1 - self.la_mu) * z.mean(dim=0)
            h = z - mu
            R = self.la_R * self.R[k] + (1 - self.la_R) * (h.T @ h) / len(h)
            logdets.append(torch.logdet(R + self.eps * self.identity))
            self.R[k], self.mu[k] = R.detach(), mu.detach()
        return self.alpha * F.mse_loss(z1, z2) - (logdets[0] + logdets[1]) / len(self.identity)


def twist(
    f1: Tensor,
    f2: Tensor,
    lam1: float = 0.0,
    lam2: float = 1.0,
    tau: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """TWIST of two views of (B, C) logits: KL both ways, sharpness, diversity."""
    p1, p2 = f1.softmax(dim=1), f2.softmax(dim=1)
    consistency = 0.5 * (_kl(p1, p2, eps) + _kl(p2, p1, eps))
    s1, s2 = (f1 / tau).softmax(dim=1), (f2 / tau).softmax(dim=1)
    sharpness = 0.5 * (_entropy(s1, eps).mean() + _entropy(s2, eps).mean())
    diversity = 0.5 * (_entropy(s1.mean(dim=0), eps) + _entropy(s2.mean(dim=0), eps))
    return consistency + (1 + lam1) * sharpness - lam2 * diversity


def twist_multicrop(logits: Sequence[Tensor], num_large: int = 2) -> Tensor:
    """The mean of `twist` over the pairs of a large crop with each view after it."""
    pairs = [(i, j) for i in range(num_large) for j in range(i + 1, len(logits))]
    return torch.stack([twist(logits[i], logits[j]) for i, j in pairs]).mean()


def _kl(a: Tensor, b: Tensor, eps: float) -> Tensor:
    return (a * (a + eps).log() - a * (b + eps).log()).sum(dim=1).mean()


def _entropy(p: Tensor, eps: float) -> Tensor:
    return -(p * (p + eps).log()).sum(dim=-1)


def minent(g1: Sequence[Tensor], g2: Sequence[Tensor]) -> Tensor:
    """MinEnt: of each head the batch norm of both views' logits, argmax, two cross-entropies.

    Args:
        g1, g2: (B, d_k) of each head, one list a view.
    """
    losses = []
    for own, other in zip(g1, g2, strict=True):
        with torch.no_grad():
            targets = [F.batch_norm(g, None, None, training=True).argmax(1) for g in (own, other)]
        losses.append(0.5 * (F.cross_entropy(own, targets[1]) + F.cross_entropy(other, targets[0])))
    return torch.stack(losses).mean()


class Heads(nn.Module):
    """MinEnt's heads, each a network of its own: (B, F) -> [(B, d_1), …, (B, d_K)].

    It loads the state dict of `solo_minent.methods.minent.MultiHead`.
    """

    def __init__(self, features_dim: int, heads: Sequence[int], hidden_dim: int, num_layers: int):
        super().__init__()
        self.heads = nn.ModuleList()
        for width in heads:
            layers: list[nn.Module] = []
            dims = [features_dim, *[hidden_dim] * (num_layers - 1)]
            for n_in, n_out in zip(dims[:-1], dims[1:], strict=True):
                layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
            self.heads.append(nn.Sequential(*layers, nn.Linear(dims[-1], width)))

    def forward(self, feats: Tensor) -> list[Tensor]:
        return [head(feats) for head in self.heads]
