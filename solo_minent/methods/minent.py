"""MinEnt: minimum entropy targets from the batch itself, several code books at once.

Recipe: github.com/LiShuo1001/MinEnt @ d17ed2f. No predictor, teacher, negatives or temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo_minent.allowed import MAX_DIM, Range, check_one_of, check_ranges, short
from solo_minent.distributed import is_distributed
from solo_minent.errors import UserError
from solo_minent.losses import minent_loss_terms, minent_targets, target_entropy
from solo_minent.losses.minent import NORMS
from solo_minent.methods.base import Progress, SSLMethod, Views, mlp

RANGES = {"hidden_dim": Range(1, 1024, high=MAX_DIM), "num_layers": Range(1, 3, high=100)}


@dataclass
class MinEntParams:
    """Hyper-parameters; defaults are the official CIFAR and ImageNet-100 ones.

    Attributes:
        heads: code book size of each head; `[128]` is the one-head variant.
        hidden_dim: width of each head's hidden layers.
        num_layers: linear layers of each head.
        norm: bn, softmax, l2 or none (the ablation that collapses).
    """

    heads: list[int] = field(default_factory=lambda: [2048, 1024, 512, 256, 128, 64, 32, 16])
    hidden_dim: int = 1024
    num_layers: int = 3
    norm: str = "bn"

    def __post_init__(self) -> None:
        if not self.heads or any(not 2 <= d <= MAX_DIM for d in self.heads):
            raise UserError(
                f"MinEnt heads are wrong: {short(self.heads)}. A non-empty list of code book sizes "
                f"from 2 to {MAX_DIM} is needed. Set method_kwargs.heads=[128] for one head."
            )
        check_one_of("method_kwargs.norm", self.norm, NORMS)
        check_ranges(self, RANGES, "method_kwargs.")


class MultiHead(nn.Module):
    """Independent heads over the same features: (B, F) -> [(B, d_1), …, (B, d_K)].

    On an accelerator, where each of many small kernels waits for its start, the heads are computed
    together; on a CPU one after the other is faster, and so it stays where processes share the
    statistics of batch norms, and for heads of a single layer. Parameters and buffers are those of
    the single heads either way.
    """

    def __init__(self, features_dim: int, heads: list[int], hidden_dim: int, num_layers: int):
        super().__init__()
        hidden = [hidden_dim] * (num_layers - 1)
        self.heads = nn.ModuleList(mlp([features_dim, *hidden, d]) for d in heads)

    def forward(self, feats: Tensor) -> list[Tensor]:
        if feats.device.type == "cpu" or len(self.heads[0]) == 1 or self._synchronised():
            return [head(feats) for head in self.heads]
        return self._together(feats)

    def _synchronised(self) -> bool:
        return is_distributed() and type(self.heads[0][1]) is not nn.BatchNorm1d

    def _together(self, feats: Tensor) -> list[Tensor]:
        """First layers as one product, hidden layers as one batched product each."""
        x, count = feats, len(self.heads)
        *hidden, last = [list(layers) for layers in zip(*self.heads, strict=True)]
        for layers in hidden:
            if isinstance(layers[0], nn.BatchNorm1d):
                x = _batch_norms(x, layers)
            elif isinstance(layers[0], nn.ReLU):
                x = F.relu(x, inplace=True)
            elif x is feats:
                weight = torch.cat([layer.weight for layer in layers])
                x = F.linear(x, weight, torch.cat([layer.bias for layer in layers]))
            else:
                x = x.unflatten(1, (count, -1)).transpose(0, 1)
                weight = torch.stack([layer.weight for layer in layers])
                bias = torch.stack([layer.bias for layer in layers])[:, None]
                x = torch.baddbmm(bias, x, weight.mT).transpose(0, 1).flatten(1)
        return [layer(part) for layer, part in zip(last, x.chunk(count, dim=1), strict=True)]


def _batch_norms(x: Tensor, layers: list[nn.BatchNorm1d]) -> Tensor:
    """Batch norms side by side: (B, K * C) of K layers; their running statistics move too."""
    training, momentum, eps = layers[0].training, layers[0].momentum, layers[0].eps
    means, variances = ([getattr(n, f"running_{k}") for n in layers] for k in ("mean", "var"))
    mean, variance = torch.cat(means), torch.cat(variances)
    weight, bias = (torch.cat([getattr(n, k) for n in layers]) for k in ("weight", "bias"))
    y = F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    if training:
        with torch.no_grad():
            torch._foreach_copy_(means, mean.chunk(len(layers)))
            torch._foreach_copy_(variances, variance.chunk(len(layers)))
            torch._foreach_add_([n.num_batches_tracked for n in layers], 1)
    return y


class MinEnt(SSLMethod):
    """Each view predicts, on every head, the other view's minimum-entropy target."""

    name = "minent"
    Params = MinEntParams
    monitors = ("target_entropy",)

    def build(self, params: MinEntParams) -> None:
        self.projector = MultiHead(
            self.features_dim, list(params.heads), params.hidden_dim, params.num_layers
        )

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        targets = [minent_targets(g, self.params.norm) for g in views.z]
        views.made["targets"] = targets
        terms = minent_loss_terms(*views.z, self.params.norm, targets)
        heads = list(self.params.heads)
        entropy = target_entropy([torch.cat(both) for both in zip(*targets, strict=True)], heads)
        # As a share of ln d, so that code books of different sizes can be averaged.
        most = torch.tensor(heads, dtype=entropy.dtype).log()
        usage = entropy / most.to(entropy.device, non_blocking=True)
        loss = torch.stack(list(terms.values())).mean()
        return {"loss": loss, "target_entropy": usage.mean(), **terms}
