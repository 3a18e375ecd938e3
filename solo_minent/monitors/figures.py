"""What the monitors measure: tensors in, scalars out, on their device and without a gradient.

Float32 at least. A tensor that is not finite gives NaN, never an error of LAPACK. Every figure is
that of the rows it is given; the caller gathers them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RANKME_EPS = 1e-7
SQUARINGS = 10


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """RankMe: the exponential of the entropy of the singular values.

    Garrido et al., "RankMe: Assessing the downstream performance of pretrained self-supervised
    representations by their rank", ICML 2023, arXiv 2210.02885, equations 1 and 2: with singular
    values s_k, k = 1..min(N, D), of the rows as they are (neither centred nor normalised),

        p_k = s_k / sum s + 1e-7        rank = exp(-sum p_k ln p_k)

    The paper takes 25,600 images; with the N of a batch it is a lower number, at most min(N, D).

    Args:
        x: (N, D) features.

    Returns:
        Scalar, float64, from 1 (to within the 1e-7) to min(N, D).
    """
    x = x.double()  # squared below: float32 would lose singular values under 3e-4 of the largest
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    s = eigenvalues(gram).clamp_min(0).sqrt()
    p = s / s.sum().clamp_min(torch.finfo(s.dtype).tiny) + RANKME_EPS
    return torch.special.entr(p).sum().exp()


@torch.no_grad()
def embedding_std(x: Tensor) -> Tensor:
    """Mean over the dimensions of the deviation of unit rows, times sqrt(D).

    The collapse measure of SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566, section 4.1), scaled
    so that it is 1 for isotropic embeddings of any width and 0 when all are the same. Deviations
    are those of the population, which keeps it from exceeding 1.

    Args:
        x: (N, D) embeddings.

    Returns:
        Scalar in [0, 1].
    """
    return F.normalize(_full(x)).std(dim=0, correction=0).mean() * math.sqrt(x.shape[1])


@torch.no_grad()
def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance between the unit embeddings of two views of an image; 0 is best.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020, arXiv 2005.10242, with alpha = 2.

    Args:
        x: (N, D) embeddings of view 1.
        y: (N, D) embeddings of view 2.

    Returns:
        Scalar in [0, 4].
    """
    return (F.normalize(_full(x)) - F.normalize(_full(y))).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(x: Tensor) -> Tensor:
    """Logarithm of the mean Gaussian potential between unit embeddings; lower is more uniform.

    Wang and Isola 2020 as above, with t = 2: ln mean_{i<j} exp(-2 |x_i - x_j|^2).

    Args:
        x: (N, D) embeddings of one view, N >= 2.

    Returns:
        Scalar in [-8, 0]; 0 when all are the same, -4 for pairwise orthogonal ones.
    """
    unit = F.normalize(_full(x))
    products = unit @ unit.T
    norms = products.diagonal()  # 1, or 0 of a row of zeros
    distances = (norms[:, None] + norms - 2 * products).clamp_min(0)
    potential = torch.exp(-2 * distances).fill_diagonal_(0)
    return (potential.sum() / (len(x) * (len(x) - 1))).log()


@torch.no_grad()
def class_usage(logits: Sequence[Tensor], tau: float = 1.0) -> dict[str, Tensor]:
    """How predictions are spread over the classes, as shares of ln C, averaged over heads.

    Args:
        logits: (N, C) of each head.
        tau: temperature of the softmax.

    Returns:
        `class_usage`: entropy of the mean prediction; 0 when all images get one class. At most
        ln N / ln C where predictions are sharp.
        `sharpness`: mean entropy of a prediction; 0 is sharp, 1 uniform. Where it equals
        `class_usage`, a prediction does not depend on the image.
    """
    shares = []
    for head in logits:
        p = (_full(head) / tau).softmax(dim=1)
        entropy = torch.special.entr(p.mean(dim=0)).sum()
        own = torch.special.entr(p).sum(dim=1).mean()
        shares.append(torch.stack([entropy, own]) / math.log(head.shape[1]))
    usage, sharpness = torch.stack(shares).mean(dim=0)
    return {"class_usage": usage, "sharpness": sharpness}


@torch.no_grad()
def coding(p: Tensor, z: Tensor, lamda_inv: float) -> dict[str, Tensor]:
    """MEC's coding length by the logarithm itself, and how far its series is from converging.

    With unit rows and C = p z^T / lamda_inv, the loss replaces ln det(I + C) by a Taylor series,
    which converges where all eigenvalues of C are smaller than 1 in size. C is not symmetric: its
    eigenvalues are complex, and beyond that radius a polynomial of order 4 falls without bound
    along some of them (x = r exp(i pi / 4): -x^4 / 4 = r^4 / 4, maximised).

    Args:
        p: (V, m, d) teacher outputs; V pairings of views.
        z: (V, m, d) student outputs after the predictor, of the other view each.
        lamda_inv: m eps / d, for these m rows.

    Returns:
        `coding_length`: (m + d) / 2 ln |det(I + C)| / m, what `train_mec_coding_length` is the
        series of.
        `spectral_radius`: the largest of the V radii.
    """
    p, z = F.normalize(_full(p), dim=2), F.normalize(_full(z), dim=2)
    m, d = p.shape[1:]
    # The nonzero eigenvalues of p z^T are those of z^T p: take the smaller one.
    c = (p @ z.mT if m <= d else z.mT @ p) / lamda_inv
    identity = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    logdet = torch.linalg.slogdet(c + identity).logabsdet
    lowest = c.shape[-1] * math.log(torch.finfo(c.dtype).tiny)  # singular: every pivot underflows
    return {
        "coding_length": logdet.clamp_min(lowest).mean() * ((m + d) / (2 * m)),
        "spectral_radius": spectral_radius(c).amax(),
    }


@torch.no_grad()
def spectral_radius(c: Tensor) -> Tensor:
    """Largest absolute eigenvalue, from matrix products alone.

    With k = 2^10 by squaring, (|C^2k| / |C^k|)^(1/k) in Frobenius norms: exact up to
    (|l_2| / |l_1|)^k where one eigenvalue leads, within some tenths of a percent otherwise. Far
    cheaper than the eigenvalues of a matrix that is not symmetric, which run on the CPU.

    Args:
        c: (..., n, n).

    Returns:
        (...). NaN where `c` is not finite.
    """
    tiny = torch.finfo(c.dtype).tiny
    norm = torch.linalg.matrix_norm(c).clamp_min(tiny)
    power, log_norm = c / norm[..., None, None], norm.double().log()
    for _ in range(SQUARINGS + 1):
        power = power @ power
        norm = torch.linalg.matrix_norm(power).clamp_min(tiny)
        power = power / norm[..., None, None]
        half, log_norm = log_norm, 2 * log_norm + norm.double().log()
    return ((log_norm - half) / 2**SQUARINGS).exp().to(c.dtype)


@torch.no_grad()
def covariance(r1: Tensor, r2: Tensor, eps: float) -> dict[str, Tensor]:
    """CorInfoMax's two running covariances.

    Args:
        r1: (D, D), symmetric.
        r2: (D, D), symmetric.
        eps: added to the diagonal, as in the loss.

    Returns:
        `logdet1`, `logdet2`: ln det(R_k + eps I); -D ln D is the most for unit rows, D ln eps the
        least.
        `smallest_eigenvalue`: of R_1 and R_2.
    """
    values = eigenvalues(torch.stack([r1, r2]))
    floor = torch.finfo(values.dtype).tiny
    logdet = (values + eps).clamp_min(floor).log().sum(dim=1)
    return {"logdet1": logdet[0], "logdet2": logdet[1], "smallest_eigenvalue": values.min()}


def eigenvalues(a: Tensor) -> Tensor:
    """`eigvalsh` of (..., n, n); NaN instead of an error where an entry is not finite."""
    finite = a.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, a, 0.0))
    return torch.where(finite, values, torch.nan)


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
