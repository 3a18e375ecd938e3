"""Lightning's Trainer for a run: devices, processes, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import CheckpointIO

from solo_minent.schema import RunConfig


def make_trainer(
    config: RunConfig,
    accelerator: str,
    callbacks: list[Callback],
    files: CheckpointIO,
    progress_bar: bool,
) -> pl.Trainer:
    """The Trainer of a pretraining run.

    Args:
        config: of the run.
        accelerator: gpu or cpu.
        callbacks: in their order.
        files: writes and reads checkpoints.
        progress_bar: show Lightning's.
    """
    plugins: list[Any] = [files]
    return pl.Trainer(
        max_epochs=config.max_epochs,
        accelerator=accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=_precision(config, accelerator),
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip_val,
        # torch's SyncBatchNorm has no CPU kernel.
        sync_batchnorm=config.sync_batchnorm and accelerator != "cpu",
        callbacks=callbacks,
        plugins=plugins,
        logger=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=progress_bar,
        default_root_dir=Path(config.run_dir),
    )


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision != "auto":
        return config.precision
    bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if bf16 else "32-true"
