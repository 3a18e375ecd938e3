"""Collectives for the losses: exact in value and in gradient, the identity on one process.

Gradient convention, the same for every loss of this package. On W ranks each rank returns the loss
of the GLOBAL batch, and the gradient it leaves on its own rows is W times their slice of the
full-batch gradient. `DistributedDataParallel` averages over ranks, which divides by W: the training
step is then exactly that of one process that sees the concatenated batch. These carry it:

    gather        y = [x_0; ...; x_{W-1}]   backward: all-reduce(SUM) of the gradients, own slice
    global_mean   y = mean_r x_r            backward: identity
    group_mean    y = mean_r x_r            backward: mean of the gradients

All ranks must pass the same shapes (`drop_last=True` in the loader): a collective cannot see a
mismatch before it hangs or fails, so nothing here tries to.

Autograd functions of our own: the in-place collectives are invisible to autograd (torch 2.11
warns), and packing lets several tensors share one collective, of which only those that need a
gradient come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from solo_minent.errors import UserError


def is_distributed() -> bool:
    """True when a process group of two or more ranks is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenates `x` over ranks along dimension 0, differentiably.

    Args:
        x (Tensor): (B, ...) with the same shape and dtype on every rank.

    Returns:
        Tensor: (W * B, ...), rows of rank 0 first; `x` itself on one process.
    """
    return gather_packed(x)[0]


def gather_packed(*xs: Tensor) -> tuple[Tensor, ...]:
    """`gather` of several tensors in one collective (and one more in the backward pass).

    Only those that need a gradient travel in the backward pass.

    Args:
        xs (Tensor): each (B, ...), all with the same B and dtype.

    Returns:
        tuple[Tensor, ...]: each (W * B, ...); the inputs themselves on one process.

    Raises:
        UserError: scalars, or tensors that differ in B or dtype.
    """
    if any(x.ndim == 0 for x in xs):
        raise UserError(
            "gather needs a batch dimension: got a scalar. Use global_mean for scalars."
        )
    if len({(x.shape[0], x.dtype) for x in xs}) > 1:
        got = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in xs)
        raise UserError(
            f"tensors gathered together differ in rows or dtype: {got}. "
            "They need the same batch size and dtype. Cast or gather them one by one."
        )
    return _Gather.apply(*xs) if is_distributed() else xs


def global_mean(x: Tensor) -> Tensor:
    """Mean over ranks; the gradient passes unchanged (see the module docstring).

    Args:
        x (Tensor): any shape, the same on every rank.

    Returns:
        Tensor: like `x`; `x` itself on one process.
    """
    return _GlobalMean.apply(x) if is_distributed() else x


def group_mean(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Mean over the ranks of a group, for statistics that go on into each rank's own rows.

    Unlike `global_mean`'s, the gradient is the exact one of the sum of the ranks' losses: the mean
    of what the ranks of the group give.

    Args:
        x (Tensor): any shape, the same on every rank of the group.
        group (ProcessGroup | None): None for this process alone.

    Returns:
        Tensor: like `x`; `x` itself without a group.
    """
    return x if group is None else _GroupMean.apply(x, group)


@torch.no_grad()
def global_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient. `x` is left as it is."""
    return _all_reduce(x, dist.ReduceOp.SUM) if is_distributed() else x.detach()


@torch.no_grad()
def global_max(x: Tensor) -> Tensor:
    """Element-wise maximum over ranks, without gradient. `x` is left as it is."""
    return _all_reduce(x, dist.ReduceOp.MAX) if is_distributed() else x.detach()


class Agreement:
    """A number on which the processes agree once a step, without waiting for a device.

    The exchange runs on the CPU beside the step. Make it on all processes at the same time.

    Args:
        timeout: for which a process waits for the others.

    Raises:
        UserError: the processes do not reach each other.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._group = None
        if is_distributed():
            try:
                self._group = dist.new_group(backend="gloo", timeout=timeout)
            except RuntimeError as error:
                said = (str(error).splitlines() or [""])[0].strip()
                raise UserError(
                    f"the processes do not reach each other over gloo: {said}. They talk over one "
                    "network interface of each node. Name it, with its name of `ip addr`: "
                    "GLOO_SOCKET_IFNAME=eth0 (NCCL_SOCKET_IFNAME is NCCL's)."
                ) from error
        self._under_way: tuple[Tensor, dist.Work] | None = None

    def largest(self, own: int) -> int:
        """The largest number that a process gave at the call before, of one process: at this one.

        All processes must call it equally often.
        """
        if self._group is None:
            return own
        agreed = 0
        if self._under_way is not None:
            earlier, work = self._under_way
            work.wait()
            agreed = int(earlier)
        number = torch.tensor(own)
        work = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True)
        self._under_way = (number, work)
        return agreed


def _all_reduce(x: Tensor, op: dist.ReduceOp, group: dist.ProcessGroup | None = None) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op=op, group=group)
    return total


def _pack(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(x.shape[0], -1) for x in xs], dim=1)


def _unpack(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = packed.split([shape[1:].numel() for shape in shapes], dim=1)
    return [part.reshape(-1, *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [x.shape for x in xs]
        packed = _pack(xs)
        out = packed.new_empty(world_size() * packed.shape[0], packed.shape[1])
        # torch 2.14 warns about the second name; older releases lack the first.
        new_name = hasattr(dist, "all_gather_single")
        all_gather = dist.all_gather_single if new_name else dist.all_gather_into_tensor
        all_gather(out, packed)
        return tuple(_unpack(out, ctx.shapes))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        packed = _pack([grads[i] for i in wanted])
        dist.all_reduce(packed)
        rows = ctx.shapes[0][0]
        own = packed[rank() * rows : (rank() + 1) * rows]
        result: list[Tensor | None] = [None] * len(grads)
        for i, grad in zip(wanted, _unpack(own, [ctx.shapes[i] for i in wanted]), strict=True):
            result[i] = grad
        return tuple(result)


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _all_reduce(x, dist.ReduceOp.SUM).div_(world_size())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class _GroupMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduce(x, dist.ReduceOp.SUM, group).div_(dist.get_world_size(group))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        total = _all_reduce(grad, dist.ReduceOp.SUM, ctx.group)
        return total.div_(dist.get_world_size(ctx.group)), None
