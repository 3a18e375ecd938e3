"""What kNN is given, as tensors, or one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DISTANCES = ("cosine", "euclidean")
_LARGEST = 1e140  # sums of squares stay finite
# Integers of these types have few operators in PyTorch.
_RARE = (torch.uint16, torch.uint32, torch.uint64)


def features(feats: ArrayLike | Tensor, name: str) -> Tensor:
    """Features (N, D) of any real dtype, where they are; `name` is for the message.

    Raises:
        UserError: not a table of finite real numbers, or empty.
    """
    tensor = _tensor(feats)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise UserError(
            f"{name} features must be a full (N, D) table: {tuple(tensor.shape)}. "
            "One row an image. Extract them again."
        )
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{name} features must be real numbers: {tensor.dtype}. Convert them.")
    if tensor.dtype in _RARE:
        tensor = tensor.double()
    # min and max carry a NaN along, and need no mask of the whole table.
    low, high = (float(v) for v in tensor.aminmax())
    if not (low > -_LARGEST and high < _LARGEST):
        raise UserError(
            f"{name} features hold NaN, infinity or huge values: from {low} to {high}. "
            "The training has probably diverged. Use an earlier checkpoint."
        )
    return tensor


def pair(train_feats: ArrayLike | Tensor, test_feats: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    """Training and test features.

    Raises:
        UserError: as `features`, or they differ in width.
    """
    train, test = features(train_feats, "training"), features(test_feats, "test")
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"training and test features differ in width: {train.shape[1]} and {test.shape[1]}. "
            "They must come from one backbone. Extract both again."
        )
    return train, test


def classes_of(labels: ArrayLike | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class numbers (N,) and the sorted labels they stand for."""
    classes, numbers = torch.unique(integers(labels, count, "training"), return_inverse=True)
    return numbers, classes


def integers(labels: ArrayLike | Tensor, count: int, name: str) -> Tensor:
    """Labels (N,), int64 on the CPU.

    Raises:
        UserError: another number of them, or not integers.
    """
    tensor = _tensor(labels).cpu()
    if tensor.shape != (count,):
        raise UserError(
            f"{name} labels do not match the features: {tuple(tensor.shape)}. "
            f"Expected ({count},). Give one label an image."
        )
    if tensor.is_floating_point() or tensor.is_complex():
        raise UserError(f"{name} labels must be integers: {tensor.dtype}. Convert them.")
    return tensor.to(torch.int64)


def check_k(k: int, count: int) -> None:
    """Raises UserError if k is not a number of neighbours that the training set has."""
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= count:
        raise UserError(
            f"k must be a number of neighbours: {k!r}. Allowed: 1 to {count}, the size of the "
            "training set. Lower k."
        )


def check_distance(distance: str) -> None:
    """Raises UserError if the distance is unknown."""
    if distance not in DISTANCES:
        raise UserError(
            f"unknown distance: {distance}. Allowed: {', '.join(DISTANCES)}. Set distance=cosine."
        )


def check_grid(
    ks: Sequence[int],
    temperatures: Sequence[float | None],
    distances: Sequence[str],
    count: int,
) -> None:
    """Raises UserError if a value of the grid is not allowed on `count` training points."""
    if not len(ks) or not len(temperatures) or not len(distances):
        raise UserError("an empty kNN grid: no k, temperature or distance. Give at least one each.")
    for temperature in temperatures:
        number = isinstance(temperature, Real) and not isinstance(temperature, bool)
        if temperature is not None and not (number and 0 < temperature < float("inf")):
            raise UserError(
                f"temperature must be a positive number: {temperature!r}. "
                "None means one vote each. Set temperature=0.07."
            )
    for distance in distances:
        check_distance(distance)
    for k in ks:
        check_k(k, count)


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    # PyTorch takes neither read-only arrays nor negative strides.
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
