"""Which training points can be among the k nearest: matrix products that are upper bounds.

Let x and y be a test and a training point, moved so that the training set's centre is the origin.
The nearer y is to x, the larger is g = x·y - |y|²/2; for cosine the points are unit vectors, where
that is the same order. In a short floating-point format the rounded points x', y' have

    |x·y - x'·y'| <= |x - x'| |y| + |x'| |y - y'|

and the sum itself is wrong by at most γ times the sum of its terms. All of these are products of
something of x and something of y, so a few more columns make one matrix product give

    s = x'·y' - |y|²/2 + (all errors) - t >= g - t

with t, the largest number that is known not to exceed the k-th largest g of x so far. Only points
with s >= 0 are looked at any further: a sign test on the product. Its rounding is relative to s,
which is small where it matters, so that even a bfloat16 result is as good as any.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_NEVER = -1e30  # no score is near it: points are scaled to at most 1 in each coordinate
_SMALLEST = 1e-150  # of a norm; shorter vectors have no direction
_CHUNK = 4096  # training points of a product
_PRODUCT_ELEMENTS = 1 << 21  # of a product
_ROWS = 256  # points converted at once
_WORD = 8  # bools, or bytes of elements, that are looked at as one integer
_LANES = 32  # columns come in multiples: whole words of any dtype, and of their bools
_SIGNS = {1: -(1 << 63), 2: -0x7FFFFFFF80000000, 4: -0x7FFF7FFF7FFF8000}
_EXTRA = 8  # columns behind the coordinates: |y|²/2 in three pieces, two of errors, t in three


class Form(NamedTuple):
    """How products are taken: points are rounded to `rounded` and multiplied in `product`."""

    rounded: torch.dtype
    product: torch.dtype

    def hold(self, values: Tensor) -> Tensor:
        return values.to(self.rounded).to(self.product)

    def split(self, values: Tensor) -> Tensor:
        """(n,) float64 -> (n, 3) whose sum is `values` but for its 2^-24 at the most."""
        pieces = []
        for _ in range(3):
            pieces.append(self.hold(values))
            values = values - pieces[-1].double()
        return torch.stack(pieces, dim=1)


class Found(NamedTuple):
    """Candidates of each test point, one after the other.

    Attributes:
        column: int64 (M,), training points, rising within a test point.
        start: int64 (T,), where those of a test point begin.
        count: int64 (T,), how many it has.
        complete: bool (T,), no other training point can be among the k nearest.
        floor: float64 (T,), similarity (cosine) that every other training point is below.
    """

    column: Tensor
    start: Tensor
    count: Tensor
    complete: Tensor
    floor: Tensor


class Space:
    """The coordinates that points are compared in.

    Args:
        train: features (N, D).
        test: features (T, D).
        distance: cosine or euclidean.
        device: where points are compared.
    """

    def __init__(self, train: Tensor, test: Tensor, distance: str, device: torch.device):
        self.distance, self.device = distance, device
        self.scale = 1.0
        if distance == "euclidean":
            largest = max(float(v.abs()) for t in (train, test) for v in t.aminmax())
            # A power of two: exact.
            self.scale = 2.0 ** -(torch.frexp(torch.tensor(largest).double())[1].item())
        self.centre = torch.zeros(train.shape[1], dtype=torch.float64, device=device)
        some = train[:: max(1, len(train) // 1024)]
        self.centre = self.points(some)[0].mean(0)

    def points(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Centred points float64 (n, D), and which of them are (n,) zero vectors (cosine)."""
        rows = rows.to(self.device, torch.float64)
        zero = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        if self.distance == "cosine":
            norm = rows.norm(dim=1)
            zero = norm < _SMALLEST
            rows = torch.where(zero[:, None], 0.0, rows / norm[:, None])
        elif self.scale != 1:
            rows = rows * self.scale
        return rows - self.centre, zero


class _Side(NamedTuple):
    """Points of one side as rows of a product, and norms (n,) float64 that bound errors."""

    held: Tensor
    norm: Tensor  # at least |x'|, |y|
    error: Tensor  # at least |x - x'|, |y - y'|
    square: Tensor  # |x|², |y|²
    slack: Tensor  # by how much a right side's own term was raised
    zero: Tensor


def search(space: Space, train: Tensor, test: Tensor, k: int, width: int, form: Form) -> Found:
    """Candidates for the k nearest training points of each test point.

    Args:
        space: of both.
        train: features (N, D).
        test: features (T, D).
        k: neighbours.
        width: a test point with more candidates is given up, and not complete.
        form: of the products.
    """
    run = _Search(space, test, k, width, form)
    # In an order without order: a chunk shows what the others hold, so that t is soon good.
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    start = 0
    while start < len(train):
        size = max(min(_CHUNK, max(start, 1024)), 4 * width)
        run.chunk(train, order[start : start + size], first=start == 0)
        start += size
    return run.found(len(train))


class _Search:
    """A running search; see `search`."""

    def __init__(self, space: Space, test: Tensor, k: int, width: int, form: Form):
        self.space, self.k, self.width, self.form = space, k, width, form
        terms = test.shape[1] + _EXTRA
        accumulated = torch.float64 if form.product == torch.float64 else torch.float32
        # Twice the classical bound of a sum: some hardware truncates.
        self.gamma = 2 * terms * torch.finfo(accumulated).eps
        # Of float64 sums: points, norms, and the pairs' own.
        self.pairs = 4 * (terms + 8) * _EPS
        self.rounding = torch.finfo(form.product).eps
        # Products smaller than these may be flushed to 0.
        tiny = 1e-300 if form.rounded == torch.float64 else 1e-30
        self.left = self._side(test)
        cosine = space.distance == "cosine"
        self.slack = 2 * self.pairs * (self.left.square + cosine) + tiny
        zeros = torch.zeros_like(self.slack)
        self.shift = zeros  # t
        self.lower = torch.full((len(test), k), _NEVER, dtype=torch.float64, device=zeros.device)
        self.floor = zeros + _NEVER  # the k-th largest lower bound
        self.dropped = zeros + 2 * _NEVER  # upper bound of what was not kept
        # Candidates: row, column, upper bound.
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.tidy = 0  # how many there were when they were last looked through

    def chunk(self, train: Tensor, index: Tensor, first: bool) -> None:
        """Looks at the training points that `index` (n,) names."""
        right = self._side(train, index)
        index = index.to(self.space.device, torch.int32)
        step = max(1, _PRODUCT_ELEMENTS // len(right.held) // (4 if first else 1))
        for start in range(0, len(self.slack), step):
            rows = slice(start, min(start + step, len(self.slack)))
            product = self.left.held[rows] @ right.held.T
            if first:
                width = min(self.width, len(index))
                value, column = product[:, : len(index)].topk(width, dim=1, sorted=False)
                row = torch.arange(len(value), device=value.device).repeat_interleave(width)
                value, column = value.flatten(), column.flatten()
            else:
                row, column, value = self._hits(product, start)
            row, value = row + start, value.double()
            spread = self.rounding * value.abs() + self.gamma * self.shift[row].abs()
            spread += self.slack[row]
            value += self.shift[row]
            wide = self.left.error[row] * right.norm[column]
            wide += self.left.norm[row] * right.error[column] + right.slack[column]
            upper = value + spread
            if first and len(index) > width:
                self.dropped[rows] = upper.view(-1, width).amin(1)
            self._raise_floor(rows, row, value - spread - 2.5 * wide)
            keep = upper >= self.floor[row]
            self.parts.append((row[keep].int(), index[column[keep]], upper[keep]))
        if sum(len(part[0]) for part in self.parts) > 1.25 * self.tidy:
            self._forget()

    def found(self, points: int) -> Found:
        """What was found among all training points, whose number is given."""
        row, column, counts = self._forget()
        order = (row.long() * points + column).argsort()
        similarity = self.floor - self.left.square / 2
        similarity += torch.where(self.left.zero, 0.5, 1.0)
        complete = self.dropped < self.floor
        starts = counts.cumsum(0) - counts
        return Found(column[order].long(), starts, counts, complete, similarity)

    def _hits(self, product: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and value of the elements that are not negative, row by row.

        A row with more than `width` is given up.
        """
        # The sign bits of several elements in one integer, and several answers in the next:
        # several times faster than `product >= 0` and its nonzero().
        lanes = _WORD // product.element_size()
        signs = _SIGNS[lanes]
        some = (product.view(torch.int64) & signs).ne(signs).flatten()
        words = some.view(torch.int64).nonzero()
        span = _WORD * lanes
        if len(words) > len(product):
            row = words.flatten() // (product.shape[1] // span)
            many = torch.bincount(row, minlength=len(product)) > self.width
            self.dropped[start : start + len(product)][many] = torch.inf
            words = words[~many[row]]
        words = words.flatten()
        block = product.view(-1, span)[words]
        place, lane = (block >= 0).nonzero(as_tuple=True)
        flat = words[place] * span + lane
        row = flat // product.shape[1]
        return row, flat - row * product.shape[1], block[place, lane]

    def _raise_floor(self, rows: slice, row: Tensor, lower: Tensor) -> None:
        """Takes in lower bounds of points of the rows, sorted by row."""
        better = lower > self.floor[row]
        row, lower = row[better] - rows.start, lower[better]
        if not len(row):
            return
        counts = torch.bincount(row, minlength=rows.stop - rows.start)
        slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        new = lower.new_full((len(counts), int(counts.max())), _NEVER)
        new[row, slot] = lower
        self.lower[rows] = torch.cat([self.lower[rows], new], 1).topk(self.k, 1, sorted=False)[0]
        floor = self.floor[rows] = self.lower[rows].amin(1)
        pieces = self.form.split(floor - 2 * self.gamma * floor.abs() - self.slack[rows])
        self.left.held[rows, -3:] = -pieces
        self.shift[rows] = pieces.double().sum(1)

    def _forget(self) -> tuple[Tensor, Tensor, Tensor]:
        """Drops candidates that are below the floor, and gives up rows that still have too many.

        Returns row and column of those that are left, and how many a row has.
        """
        row, column, upper = (torch.cat(part) for part in zip(*self.parts, strict=True))
        self.parts.clear()
        keep = (upper >= self.floor[row]) & (self.dropped[row] < torch.inf)
        counts = torch.bincount(row[keep], minlength=len(self.slack))
        many = counts > self.width
        self.dropped[many] = torch.inf
        self.left.held[self.dropped == torch.inf, -3] = _NEVER
        counts[many] = 0
        keep &= ~many[row]
        self.parts.append((row[keep], column[keep], upper[keep]))
        self.tidy = len(self.parts[0][0])
        return *self.parts[0][:2], counts

    def _side(self, feats: Tensor, index: Tensor | None = None) -> _Side:
        """Rows of a product: the left side, or the training points of an index.

        The right side is padded to whole words.
        """
        left = index is None
        space, form, gamma, pairs = self.space, self.form, self.gamma, self.pairs
        width = feats.shape[1]
        total = len(feats) if left else len(index)
        padded = total if left else -(-total // _LANES) * _LANES
        held = torch.zeros((padded, width + _EXTRA), dtype=form.product, device=space.device)
        norm, error, square, zero = [], [], [], []
        for start in range(0, total, _ROWS):
            part = slice(start, min(start + _ROWS, total))
            points, flag = space.points(feats[part if left else index[part].to(feats.device)])
            rounded = form.hold(points)
            held[part, :width] = rounded
            square.append(points.square().sum(1))
            scale = 1.0 if space.distance == "cosine" else square[-1].sqrt()
            error.append(points.sub_(rounded).norm(dim=1) + pairs * scale)
            norm.append(square[-1].sqrt() + error[-1])
            zero.append(flag)
        norm, error, square, zero = (torch.cat(part) for part in (norm, error, square, zero))
        own = held[:total, width:]
        # A zero vector has similarity 0 to everything, which is not what its distance says.
        half = square / 2 + zero.double() / 2
        slack = 2 * (gamma + pairs) * (half + square)
        if left:
            error = error + 1.5 * gamma * norm
            own[:, :3] = 1
            own[:, 3], own[:, 4] = _raised(form, error), _raised(form, norm)
        else:
            own[:, :3] = form.split(slack - half)
            own[:, 3], own[:, 4] = _raised(form, norm), _raised(form, error)
            own[:, -3:] = 1
            held[total:, width] = _NEVER
        return _Side(held, norm, error, square, slack, zero)


def _raised(form: Form, values: Tensor) -> Tensor:
    """Held values that are not below those given: what they bound must not shrink."""
    return form.hold(values * (1 + torch.finfo(form.rounded).eps))


def forms(device: torch.device) -> list[Form]:
    """Forms of products on a device, the first to be tried first; float64 is the last."""
    exact = _keeps_float32(device)
    single = Form(torch.float32 if exact else torch.bfloat16, torch.float32)
    out = [single, Form(torch.float64, torch.float64)]
    if device.type == "cpu" and _short_is_faster(torch.get_num_threads()):
        out.insert(0, Form(torch.bfloat16, torch.bfloat16))
        if not exact:
            del out[1]
    return out


@functools.cache
def _short_is_faster(threads: int) -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32; measured, some milliseconds."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones((256, 512), dtype=dtype), torch.ones((1024, 512), dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            _ = left @ right.T
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def _keeps_float32(device: torch.device) -> bool:
    """Whether float32 products use all 24 bits: `torch.set_float32_matmul_precision` and others."""
    value = torch.full((256, 256), 1 + 2.0**-23, device=device)
    return bool((value @ torch.eye(256, device=device) == value).all())
