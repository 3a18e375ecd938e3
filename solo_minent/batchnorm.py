"""Batch norm over the rows of all processes: torch's SyncBatchNorm on GPUs, an own layer on CPUs.

torch's has no CPU kernel. The gradient convention is that of `solo_minent.distributed`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from solo_minent.distributed import is_distributed
from solo_minent.errors import UserError


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm*, whose mean and variance in training are those of the rows of all processes.

    Processes may have different numbers of rows. On one process, and in evaluation, it is
    nn.BatchNorm itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, …) over all but the second dimension.

        Raises:
            ValueError: one value for each channel on all processes together.
        """
        if not (self.training and is_distributed()):
            return _BatchNorm.forward(self, x)  # not that of a subclass, which goes on
        self._check_input_dim(x)
        y, mean, variance, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if factor is None:
                factor = 1.0 / float(self.num_batches_tracked)
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.mul_(1.0 - factor).add_(new, alpha=factor)


class _GlobalNorm(torch.autograd.Function):
    """Two passes and two collectives: the sums, then the squares of what is centred."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        packed = torch.cat([wide.sum(rows), wide.new_tensor([wide.numel() // wide.shape[1]])])
        packed = packed.double()  # few numbers: the sum over processes adds no rounding
        dist.all_reduce(packed)
        count = packed[-1]
        if count < 2:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)} on this process, {int(count)} on all"
            )
        mean = (packed[:-1] / count).to(wide.dtype)
        centred = wide - mean.view(shape)
        squares = centred.square().sum(rows).double()
        dist.all_reduce(squares)
        variance = (squares / count).to(wide.dtype)
        scale = torch.rsqrt(variance + eps)
        normal = centred.mul_(scale.view(shape))
        y = normal if weight is None else normal * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        ctx.save_for_backward(normal, weight, scale)
        ctx.count, ctx.rows, ctx.shape = count, rows, shape
        ctx.mark_non_differentiable(mean, variance, count)
        # A copy: autograd must not hand out the tensor that it keeps for the backward pass.
        y = y.clone() if y is normal else y
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        normal, weight, scale = ctx.saved_tensors
        dtype, grad = grad.dtype, grad.to(normal.dtype)
        grad_bias = grad.sum(ctx.rows)
        grad_weight = (grad * normal).sum(ctx.rows)
        packed = torch.cat([grad_bias, grad_weight]).double()
        dist.all_reduce(packed)
        along_one, along_normal = (packed / ctx.count).to(normal.dtype).chunk(2)
        inner = grad - along_one.view(ctx.shape) - normal * along_normal.view(ctx.shape)
        factor = scale if weight is None else scale * weight
        needed = ctx.needs_input_grad
        return (
            (inner * factor.view(ctx.shape)).to(dtype) if needed[0] else None,
            grad_weight.to(weight.dtype) if needed[1] else None,
            grad_bias.to(weight.dtype) if needed[2] else None,
            None,
        )


class _WithActivation:
    """In front of a layer made from timm's BatchNormAct2d, whose forward goes on after the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class BatchNormSync(LayerSync):
    """Makes the batch norms of a model global while it trains on several processes.

    The layers stay the objects that they are, with their parameters, buffers and hooks; only their
    class changes. So what they do besides (the activation in timm's BatchNormAct2d) is known, or
    the layer is refused: torch's own conversion drops it without a word.

    Args:
        torch_layer: torch's SyncBatchNorm, for GPUs; else GlobalBatchNorm.
    """

    def __init__(self, torch_layer: bool) -> None:
        self.layer = nn.SyncBatchNorm if torch_layer else GlobalBatchNorm

    def apply(self, model: nn.Module) -> nn.Module:
        """Makes every nn.BatchNorm* of `model` global, in place.

        Raises:
            UserError: a batch norm of a class whose forward is its own.
        """
        layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        layers = [layer for layer in layers if not isinstance(layer, self.layer)]
        classes = [global_class(type(layer), self.layer) for layer in layers]
        for layer, kind in zip(layers, classes, strict=True):
            layer.__class__ = kind
            if self.layer is nn.SyncBatchNorm:
                layer.process_group = None  # all processes
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Makes the layers what they were before `apply`."""
        for layer in model.modules():
            if isinstance(layer, self.layer) and hasattr(type(layer), "plain"):
                layer.__class__ = type(layer).plain
                vars(layer).pop("process_group", None)
        return model


@cache
def global_class(plain: type[_BatchNorm], layer: type[_BatchNorm]) -> type[_BatchNorm]:
    """`plain` with statistics over all processes; its attribute `plain` is what it was made of.

    Args:
        plain: a subclass of nn.BatchNorm*, or timm's BatchNormAct2d.
        layer: GlobalBatchNorm or nn.SyncBatchNorm.

    Raises:
        UserError: its forward is its own, and what it does besides is unknown.
    """
    bases: tuple[type, ...] = (layer, plain)
    if plain.forward is not _BatchNorm.forward:
        if plain.forward not in _forwards_with_activation():
            raise UserError(
                f"batch norm cannot be made global: {plain.__module__}.{plain.__qualname__} has a "
                "forward of its own. torch's batch norms and timm's BatchNormAct2d can. Set "
                "sync_batchnorm=false, or choose another backbone."
            )
        bases = (_WithActivation, *bases)
    return type(f"Global{plain.__name__}", bases, {"plain": plain})


def _forwards_with_activation() -> list[Any]:
    """timm's norm and activation in one; none where timm is not imported."""
    layers = sys.modules.get("timm.layers")
    return [] if layers is None else [layers.BatchNormAct2d.forward]
