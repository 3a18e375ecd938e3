"""Frozen features of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from solo_minent.console import progress_bar
from solo_minent.errors import UserError

_AUTOCAST = {
    None: None,
    "32": None,
    "32-true": None,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "16": torch.float16,
    "16-mixed": torch.float16,
}


def extract_features(
    backbone: nn.Module,
    loader: Iterable,
    device: str | torch.device | None = None,
    precision: str | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Features of every image of `loader`, in its order, the last batch included.

    backbone: images (B, 3, H, W) -> (B, D). It runs in eval mode; afterwards the mode of each of
        its modules and its device are as before.
    loader: yields (images, targets).
    device: where to compute; by default where the backbone is.
    precision: Lightning's names `32`, `bf16-mixed`, `16-mixed`; `auto` = bf16-mixed on CUDA devices
        that have it, else 32; None = 32.

    Returns CPU tensors: features float32 (N, D), labels int64 (N,).
    Raises UserError on an empty loader, an unknown precision, features that are not (B, D).
    """
    home = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    device = torch.device(device) if device is not None else home
    autocast = _autocast_dtype(precision, device)
    convolutional = any(isinstance(m, nn.Conv2d) for m in backbone.modules())
    memory_format = torch.channels_last if convolutional else torch.contiguous_format
    features, labels = [], []
    backbone.to(device)
    try:
        with (
            torch.inference_mode(),
            _eval_mode(backbone),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        ):
            for images, targets in _with_progress(loader, progress):
                images = images.to(device, non_blocking=True, memory_format=memory_format)
                batch = backbone(images)
                if not isinstance(batch, Tensor) or batch.ndim != 2:
                    got = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
                    raise UserError(
                        f"the backbone must return pooled features (B, D): {got}. "
                        "Build it with solo_minent.backbones.build_backbone."
                    )
                features.append(batch.float().cpu())
                labels.append(targets.to(torch.int64).cpu())
    finally:
        backbone.to(home)
    if not features:
        raise UserError("the loader is empty: 0 batches. Features need at least one image.")
    # Outside inference_mode, so that a probe may train on the result.
    return torch.cat(features), torch.cat(labels)


def _autocast_dtype(precision: str | None, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else None
    key = precision if precision is None else str(precision)
    if key not in _AUTOCAST:
        raise UserError(
            f"unknown precision: {precision}. Allowed: auto, 32, bf16-mixed, 16-mixed. "
            "Set precision=32."
        )
    return _AUTOCAST[key]


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
