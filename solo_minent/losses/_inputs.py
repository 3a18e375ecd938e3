"""What losses do before their formula: check shapes, leave half precision, scale rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor

from solo_minent.distributed import world_size
from solo_minent.errors import UserError

_SHORTEST = 1e-12  # F.normalize's default, which the official codes use


def check_batch(name: str, **tensors: Tensor) -> tuple[int, int]:
    """Checks that all are floating (B, D) of one shape with two or more rows over all ranks.

    Reads shapes only: no device synchronisation.

    Args:
        name (str): public function, named in the message.
        tensors (Tensor): by argument name.

    Returns:
        tuple[int, int]: local rows B, columns D.

    Raises:
        UserError: with one line that names the argument.
    """
    first, shape = "", torch.Size()
    for key, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise UserError(
                f"{name}: {key} is no floating-point tensor: {kind}. "
                "A tensor of shape (batch, dim) is expected. Pass the projector's output."
            )
        if x.ndim != 2:
            raise UserError(
                f"{name}: {key} has the wrong number of dimensions: shape {tuple(x.shape)}. "
                "Shape (batch, dim) is expected. Flatten or pool the features first."
            )
        if not first:
            first, shape = key, x.shape
        elif x.shape != shape:
            raise UserError(
                f"{name}: {first} and {key} differ in shape: {tuple(shape)} and {tuple(x.shape)}. "
                "All views of a batch need the same (batch, dim). Project all with the same head."
            )
    rows, dim = shape
    if rows < 1 or rows * world_size() < 2 or dim < 1:
        raise UserError(
            f"{name}: the batch is too small: shape {tuple(shape)} on {world_size()} process(es). "
            "Batch statistics need two or more rows in total. Raise the batch size."
        )
    return rows, dim


def check_list(name: str, key: str, xs: Sequence[Tensor], at_least: int) -> list[Tensor]:
    """Checks for a list or tuple of `at_least` entries; `check_batch` then checks the entries."""
    if not isinstance(xs, (list, tuple)) or len(xs) < at_least:
        got = f"{len(xs)} entries" if isinstance(xs, (list, tuple)) else type(xs).__name__
        raise UserError(
            f"{name}: {key} needs a list of {at_least} or more tensors: {got}. "
            "One (batch, dim) tensor a view is expected. Pass the views as a list."
        )
    return list(xs)


def check_positive(name: str, **values: float) -> None:
    """Checks that every value is greater than zero (NaN is not)."""
    for key, value in values.items():
        if not value > 0:
            raise UserError(f"{name}: {key} is not positive: {value}. Any number > 0 is allowed.")


def full_precision(*xs: Tensor) -> list[Tensor]:
    """Casts to the widest dtype among the inputs and float32; float64 stays float64."""
    dtype = reduce(torch.promote_types, (x.dtype for x in xs), torch.float32)
    return [x.to(dtype) for x in xs]


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Context in which autocast does not turn matrix products back into half precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For an autograd function's `backward`, a closed form: a derivative of it is an error.

    `once_differentiable` would often let it pass for zero: it minds the graph of the incoming
    gradients only, and none in `autograd.grad`. The last saved tensor must be an output of the
    function, whose graph leads to its inputs.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            result = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # no create_graph
            return result
        several = result if isinstance(result, tuple) else (result,)
        output = ctx.saved_tensors[-1]
        several = _NoSecondDerivative.apply(len(several), *several, output, *grads)
        return several if isinstance(result, tuple) else several[0]

    return wrapper


class _NoSecondDerivative(torch.autograd.Function):
    """The first `count` tensors as they are; they depend on all of them."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise UserError(
            "second derivative of a loss: MEC, TWIST and CorInfoMax have first ones only, in "
            "closed form. Write the formula of the loss's module in plain torch for a second one."
        )


def unit_rows(x: Tensor) -> Tensor:
    """Rows of unit length, as `F.normalize` makes them, with fewer passes backward.

    Args:
        x (Tensor): (B, D). Rows shorter than 1e-12 are divided by that.
    """
    return _UnitRows.apply(x)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        divisor = length.clamp_min(_SHORTEST)
        unit = x / divisor
        # Through a length that was clamped nothing flows.
        ctx.save_for_backward(divisor, length > _SHORTEST, unit)
        return unit

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        divisor, moves, unit = ctx.saved_tensors
        along = (grad * unit).sum(dim=1, keepdim=True) * moves
        return torch.addcmul(grad, unit, along, value=-1).div_(divisor)
