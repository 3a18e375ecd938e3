"""CorInfoMax: maximum correlative information between the views.

Paper: Ozsoy, Hamdan, Arik, Yuret, Erdogan, "Self-Supervised Learning with an Information
Maximization Criterion", NeurIPS 2022, arXiv 2209.07999. Official code: serdarozsoy/corinfomax-ssl
@ c0b917e.

For branch k in {1, 2}, with unit rows z_k of N rows in the global batch, and state R_k, mu_k:

    mu_k' = la_mu mu_k + (1 - la_mu) mean_rows(z_k)
    h_k   = z_k - mu_k'                                    centred with the NEW mean
    R_k'  = la_R R_k + (1 - la_R) h_k^T h_k / N
    loss  = alpha * mean (z_1 - z_2)^2 - [ logdet(R_1' + eps I) + logdet(R_2' + eps I) ] / D
    R_k, mu_k <- R_k', mu_k' (detached)

Naming trap: la_R and la_mu weigh the PAST; 0.01 is nearly memoryless. Unit rows bound the log-det
part from below by 2 ln D: near it is healthy, far above is dimensional collapse. Use N > D. The
gradient flows through the new mean too.

Deviations: state is saved and resumed, and advances in training mode only (the original changes it
in evaluation too and leaves it out of checkpoints); the log-determinant comes from a Cholesky
factor. State, covariance and log-determinant are float64 always, as in the original: eigenvalues
come close to eps = 1e-8. With gradient accumulation the state advances every micro-batch. Devices
without float64 (MPS) cannot run it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo_minent.distributed import gather_packed
from solo_minent.errors import UserError
from solo_minent.losses._inputs import (
    autocast_off,
    check_batch,
    first_derivative_only,
    full_precision,
    unit_rows,
)

_STRIP = 128  # columns; narrower ones waste more time than they save


class CorInfoMaxLoss(nn.Module):
    """CorInfoMax loss of two views, with its running covariances and means.

    Args:
        dim (int): width D of the projections.
        alpha (float): weight of the invariance term, >= 0. What matters is alpha / D (3.9 to 7.8
            in the official recipes).
        la_R (float): weight of the past covariance, in [0, 1).
        la_mu (float): weight of the past mean, in [0, 1).
        eps (float): added to the diagonal of the covariance, >= 0.
        R_ini (float): the covariances start as R_ini * I, >= 0.
        normalize (bool): scale the rows to unit length first (every official recipe does).

    Attributes:
        R1, R2 (Tensor): float64 (D, D) buffers; `mu1`, `mu2` float64 (D,). Saved in the state dict;
            `.half()`, `.float()` and `.to(dtype)` leave their dtype alone, `.to(device)` moves
            them.

    Raises:
        UserError: an argument out of its range.
    """

    R1: Tensor
    R2: Tensor
    mu1: Tensor
    mu2: Tensor

    def __init__(
        self,
        dim: int,
        alpha: float,
        la_R: float = 0.01,
        la_mu: float = 0.01,
        eps: float = 1e-8,
        R_ini: float = 1.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise UserError(
                f"CorInfoMaxLoss: dim is no positive integer: {dim!r}. "
                "It is the projector's output width. Set method_kwargs.output_dim."
            )
        for key, value in {"alpha": alpha, "eps": eps, "R_ini": R_ini}.items():
            if not value >= 0:
                raise UserError(
                    f"CorInfoMaxLoss: {key} is negative: {value}. Any number >= 0 is allowed."
                )
        for key, value in {"la_R": la_R, "la_mu": la_mu}.items():
            if not 0 <= value < 1:
                raise UserError(
                    f"CorInfoMaxLoss: {key} out of range: {value}. [0, 1) is allowed: it weighs "
                    "the past. The official recipes use 0.01 or 0.1."
                )
        self.dim = dim
        self.alpha = alpha
        self.la_R = la_R
        self.la_mu = la_mu
        self.eps = eps
        self.normalize = normalize
        for k in (1, 2):
            self.register_buffer(f"R{k}", R_ini * torch.eye(dim, dtype=torch.float64))
            self.register_buffer(f"mu{k}", torch.zeros(dim, dtype=torch.float64))

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss; in training mode the state advances by one step.

        Args:
            z1 (Tensor): (B, D) projections of view 1.
            z2 (Tensor): (B, D) projections of view 2.

        Returns:
            Tensor: scalar, float64. NaN when the inputs are not finite.

        Raises:
            UserError: shapes that differ or do not end in `dim`, fewer than two rows in total.
        """
        terms = self.terms(z1, z2)
        return self.alpha * terms["invariance"] - terms["logdet"]

    def terms(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """{"invariance", "logdet"}: loss = alpha * invariance - logdet. Float64.

        Call this or `forward`, once a step: each advances the state in training mode.
        """
        _, d = check_batch("CorInfoMaxLoss", z1=z1, z2=z2)
        if d != self.dim:
            raise UserError(
                f"CorInfoMaxLoss: the projections have {d} columns. dim={self.dim} are expected. "
                "Build the loss with the projector's output width."
            )
        with autocast_off(z1.device):
            views = full_precision(z1, z2)
            if self.normalize:
                views = [unit_rows(z) for z in views]
            z1, z2 = gather_packed(*views)
            logdets, R, mu = _RunningLogdets.apply(
                z1, z2, self.R1, self.R2, self.mu1, self.mu2, self.la_R, self.la_mu, self.eps
            )
            terms = {
                "invariance": (z1 - z2).square().mean(dtype=torch.float64),
                "logdet": logdets.sum() / d,
            }
        if self.training:
            self._advance(R, mu)
        return terms

    @torch.no_grad()
    def _advance(self, R: Tensor, mu: Tensor) -> None:
        # In place: DDP and compiled graphs hold on to the buffers themselves.
        for buffer, value in zip((self.R1, self.R2, self.mu1, self.mu2), (*R, *mu), strict=True):
            buffer.copy_(value)

    def _apply(self, fn, *args, **kwargs):
        """Moves the state across devices but keeps it float64 (see `nn.Module._apply`)."""

        def keep_dtype(t: Tensor) -> Tensor:
            out = fn(t)
            return out if out.dtype == t.dtype else t.to(out.device)

        return super()._apply(keep_dtype, *args, **kwargs)


class _RunningLogdets(torch.autograd.Function):
    """logdet(R_k' + eps I) (2,), and the new state: R' (2, D, D) and mu' (2, D).

    With A_k = R_k' + eps I, the gradient of h_k is 2 (1 - la_R) / N h_k A_k^-1: the inverse comes
    from the Cholesky factor at hand, and since it is symmetric one product is enough, where
    autograd takes two and goes through the factorisation. h is made again, not kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z1: Tensor,
        z2: Tensor,
        R1: Tensor,
        R2: Tensor,
        mu1: Tensor,
        mu2: Tensor,
        la_R: float,
        la_mu: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.scale, ctx.la_mu = (1 - la_R) / len(z1), la_mu
        R, mu = torch.stack([R1, R2]).mul_(la_R), torch.stack([mu1, mu2]).mul_(la_mu)
        for k, z in enumerate((z1, z2)):
            h = z.to(mu.dtype, copy=True)
            mu[k].add_(h.mean(dim=0), alpha=1 - la_mu)
            h.sub_(mu[k])
            _add_gram(R[k], h, ctx.scale)
        logdets, factors = _logdet(R, eps)
        ctx.save_for_backward(z1, z2, mu, factors, logdets)
        ctx.mark_non_differentiable(R, mu)
        ctx.set_materialize_grads(False)
        return logdets, R, mu

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        z1, z2, mu, factors, _ = ctx.saved_tensors
        inverses = _inverse(factors).mul_((2 * ctx.scale * grad)[:, None, None])

        def grad_of(z: Tensor, mu: Tensor, inverse: Tensor) -> Tensor:
            g = z.to(mu.dtype, copy=True).sub_(mu) @ inverse
            # The new mean, which h is centred with, is made of the rows.
            return g.sub_(g.mean(dim=0), alpha=1 - ctx.la_mu).to(z.dtype)

        return *map(grad_of, (z1, z2), mu, inverses), *[None] * 7


def _add_gram(R: Tensor, h: Tensor, scale: float) -> None:
    """R += scale h^T h of h (N, D), in place; R (D, D) is symmetric and stays so.

    On a CPU only blocks up to the diagonal are multiplied, five of eight parts at D = 512. An
    accelerator is done with all of it before it has started several products.
    """
    width = _STRIP if R.device.type == "cpu" else len(R)
    for start in range(0, len(R), width):
        end = start + width
        strip = R[start:end, :end].addmm_(h[:, start:end].T, h[:, :end], alpha=scale)
        R[:start, start:end] = strip[:, :start].T


def _inverse(factors: Tensor) -> Tensor:
    """(L L^T)^-1 of Cholesky factors L (K, D, D); torch's waits for a GPU, to hear of errors."""
    if factors.device.type == "cpu":
        return torch.cholesky_inverse(factors)
    return _inverse_by_solving(factors)


def _inverse_by_solving(factors: Tensor) -> Tensor:
    eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
    half = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False)
    return half.mT @ half


def _logdet(R: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Log-determinants (K,) and Cholesky factors of R + eps I (K, D, D), without a device sync.

    R + eps I is positive definite up to rounding. Should rounding win (a Cholesky factor does not
    exist), the diagonal is raised by the size of the rounding, D * 2^-52 * trace, which leaves a
    finite value and gradient; good matrices are left bit for bit as they are. To learn which is
    which without waiting for an accelerator costs a second factorisation there. What still has no
    factor (NaN, inf) gives NaN, not the number LAPACK happens to leave behind.
    R is written to on the way, and left as it was.
    """
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    diagonal.add_(eps)
    factor, info = torch.linalg.cholesky_ex(R)
    if info.device.type != "cpu" or info.numpy().any():
        rounding = diagonal.sum(dim=-1) * (R.shape[-1] * torch.finfo(R.dtype).eps)
        diagonal.add_(torch.where(info > 0, rounding, 0.0)[:, None])
        factor, info = torch.linalg.cholesky_ex(R)
    diagonal.copy_(kept)
    logdet = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return torch.where(info == 0, logdet, torch.nan), factor
