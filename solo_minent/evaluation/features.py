"""Frozen features of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from solo_minent.console import progress_bar
from solo_minent.errors import UserError
from solo_minent.machine import available_memory
from solo_minent.schema import RunConfig

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SAME = {"32-true": "32", "bf16": "bf16-mixed", "16": "16-mixed"}
PRECISIONS = ("32", "tf32", *_AUTOCAST)


def device_of(config: RunConfig) -> str:
    """cuda if there is a GPU and `config.accelerator` is not cpu."""
    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def extract_features(
    backbone: nn.Module,
    loader: Iterable,
    device: str | torch.device | None = None,
    precision: str | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Features of every image of `loader`, in its order, the last batch included.

    Of a DataLoader that goes through its images in order, they are written to their place as they
    come: memory for all of them is taken once.

    backbone: images (B, 3, H, W) -> (B, D). It runs in eval mode; afterwards the mode of each of
        its modules and its device are as before.
    loader: yields (images, targets).
    device: where to compute; by default where the backbone is.
    precision: `32` (exact: no TF32), `tf32`, `bf16-mixed`, `16-mixed`; `auto` = bf16-mixed on CUDA
        devices that have it, else 32; None = float32 as PyTorch is set.

    Returns CPU tensors: features float32 (N, D), labels int64 (N,).
    Raises UserError on an empty loader, an unknown precision, features that are not (B, D) or that
    all together need more memory than there is.
    """
    home = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    device = torch.device(device) if device is not None else home
    name = None if precision is None else resolve_precision(precision, device)
    convolutional = any(isinstance(m, nn.Conv2d) for m in backbone.modules())
    memory_format = torch.channels_last if convolutional else torch.contiguous_format
    rows = _Rows(_count(loader))
    backbone.to(device)
    try:
        with torch.inference_mode(), _eval_mode(backbone), computing(name, device):
            for images, targets in _with_progress(loader, progress):
                images = images.to(device, non_blocking=True, memory_format=memory_format)
                batch = backbone(images)
                if not isinstance(batch, Tensor) or batch.ndim != 2:
                    got = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
                    raise UserError(
                        f"the backbone must return pooled features (B, D): {got}. "
                        "Build it with solo_minent.backbones.build_backbone."
                    )
                rows.add(batch, targets)
    finally:
        backbone.to(home)
    return rows.all()


def resolve_precision(precision: str, device: str | torch.device) -> str:
    """One of `PRECISIONS`, of Lightning's names or `auto`; on a CPU, tf32 is 32.

    Raises UserError on another name.
    """
    cuda = torch.device(device).type == "cuda"
    name = _SAME.get(str(precision), str(precision))
    if name == "auto":
        return "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32"
    if name not in PRECISIONS:
        raise UserError(
            f"unknown precision: {precision}. Allowed: auto, {', '.join(PRECISIONS)}. "
            "Set precision=32."
        )
    return "32" if name == "tf32" and not cuda else name


@contextlib.contextmanager
def computing(precision: str | None, device: str | torch.device) -> Iterator[None]:
    """Within it, networks compute in one of `PRECISIONS`; None changes nothing.

    By default PyTorch rounds what goes into a GPU's float32 convolutions to TF32: not in `32`.
    """
    dtype = _AUTOCAST.get(precision or "")
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        if precision in ("32", "tf32"):
            for switch in switches:
                switch.allow_tf32 = precision == "tf32"
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


class _Rows:
    """Features and labels, collected batch by batch.

    Args:
        count: rows that will come at most, if that is known.
    """

    def __init__(self, count: int | None) -> None:
        self.count, self.filled = count, 0
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        if self.count is None:
            self.parts.append((features.float().cpu(), labels.to(torch.int64).cpu()))
            return
        if not self.filled:
            # Outside inference_mode, so that a probe may train on the result.
            with torch.inference_mode(False):
                self.parts = [_empty(self.count, features.shape[1])]
        rows = slice(self.filled, self.filled + len(features))
        for whole, part in zip(self.parts[0], (features, labels), strict=True):
            whole[rows].copy_(part)
        self.filled = rows.stop

    def all(self) -> tuple[Tensor, Tensor]:
        if not self.parts:
            raise UserError("the loader is empty: 0 batches. Features need at least one image.")
        if self.count is None:
            features, labels = zip(*self.parts, strict=True)
            return torch.cat(features), torch.cat(labels)
        features, labels = self.parts[0]
        return features[: self.filled], labels[: self.filled]


def _empty(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Raises UserError where they would not fit into memory."""
    need, free = 4 * rows * columns, available_memory()
    if need > free:
        raise UserError(
            f"features do not fit into memory: {rows} images x {columns} numbers need "
            f"{need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free. All of them are held at "
            "once. Set data.train_images and data.val_images, or take a backbone of fewer features."
        )
    return torch.empty(rows, columns), torch.empty(rows, dtype=torch.int64)


def _count(loader: Iterable) -> int | None:
    """Images of a loader that gives each of its data set's once; None of any other."""
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler):
        return len(loader.dataset)
    return None


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode; each module's own flag comes back, as parts may have been frozen before."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _with_progress(loader: Iterable, progress: bool) -> Iterator:
    with progress_bar(progress) as bar:
        yield from bar.track(loader, description="features")
