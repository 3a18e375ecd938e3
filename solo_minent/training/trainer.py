"""Lightning's Trainer for a run: devices, processes, precision."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from solo_minent.batchnorm import BatchNormSync
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
    if config.sync_batchnorm:  # on one process it does nothing
        plugins.append(BatchNormSync(torch_layer=accelerator != "cpu"))
    return pl.Trainer(
        max_epochs=config.max_epochs,
        accelerator=accelerator,
        strategy=_strategy(config),
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=_precision(config, accelerator),
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip_val,
        use_distributed_sampler=False,  # the loaders know the processes
        callbacks=callbacks,
        plugins=plugins,
        logger=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=progress_bar,
        default_root_dir=Path(config.run_dir),
    )


def _strategy(config: RunConfig) -> DDPStrategy | str:
    if config.devices * config.num_nodes == 1:
        return "auto"
    return DDPStrategy(timeout=timedelta(minutes=config.process_timeout))


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision != "auto":
        return config.precision
    bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if bf16 else "32-true"
