"""One pretraining run: a configuration in, a run folder out."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import BACKBONE_FILE, save_backbone, write_json, write_text
from solo_minent.config import RunConfig, differences, load_run, scaled_lrs, to_yaml
from solo_minent.console import quiet_lightning
from solo_minent.data.datasets import num_classes
from solo_minent.data.loaders import eval_loader, pretrain_loader
from solo_minent.doctor import environment
from solo_minent.errors import UserError
from solo_minent.methods import available
from solo_minent.schedules import lr_factor
from solo_minent.training import EpochLog, OnlineKNN, SaveLast

CHECKPOINT = Path("checkpoints/last.ckpt")


def pretrain(config: RunConfig) -> Path:
    """Trains a method, or continues the same run where its folder left off.

    Args:
        config: a checked configuration.

    Returns:
        The run folder: config.yaml, log.csv, checkpoints/last.ckpt, backbone.safetensors,
        environment.json.

    Raises:
        UserError: the folder holds another run, or the data cannot be trained on.
    """
    run_dir = config.run_dir
    resume = _resume_point(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    host.register(available()[config.method])
    train_loader = pretrain_loader(config)
    val_loader, memory_loader = (
        eval_loader(config, split, config.evaluation.batch_size) for split in ("test", "train")
    )
    absolute = scaled_lrs(config)
    steps_per_epoch = _steps_per_epoch(config, len(train_loader.dataset))
    module = host.build_method(
        absolute,
        build_backbone(config.backbone.name, config.backbone.stem, **config.backbone.kwargs),
        lr_factor(absolute.scheduler, absolute.optimizer.lr, steps_per_epoch, config.max_epochs),
        num_classes=num_classes(config.data.dataset, config.data.root),
    )
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)
    accelerator = _accelerator(config)
    if accelerator == "cpu":
        _share_cores(config, train_loader.num_workers)
    interactive = sys.stderr.isatty()
    evaluation = config.evaluation
    knn = OnlineKNN(memory_loader, val_loader, evaluation.knn_every, evaluation.knn_k)
    log = EpochLog(run_dir / "log.csv", knn if evaluation.knn_every else None, not interactive)
    save = SaveLast(run_dir / CHECKPOINT, config.checkpoint_every)
    with quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=config.max_epochs,
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=_precision(config, accelerator),
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val,
            # torch's SyncBatchNorm has no CPU kernel.
            sync_batchnorm=config.sync_batchnorm and accelerator != "cpu",
            callbacks=[*([knn] if evaluation.knn_every else []), log, save],
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=interactive,
            default_root_dir=run_dir,
        )
        if trainer.is_global_zero:
            write_text(run_dir / "config.yaml", to_yaml(config))
            write_json(run_dir / "environment.json", environment())
            _announce(config, absolute, len(train_loader.dataset), resume)
        trainer.fit(module, train_loader, val_loader, ckpt_path=resume, weights_only=True)
        if trainer.is_global_zero:
            state = host.backbone_state(module.state_dict())
            save_backbone(run_dir / BACKBONE_FILE, state, config)
    return run_dir


def _resume_point(config: RunConfig) -> Path | None:
    """The run's own checkpoint, or None for a fresh start; a sibling's is refused."""
    checkpoint = config.run_dir / CHECKPOINT
    if not checkpoint.is_file():
        return None
    changed = differences(load_run(config.run_dir), config)
    if changed:
        raise UserError(
            f"run folder holds another run: {config.run_dir}, which differs in "
            f"{'; '.join(changed)}. A run continues only with the same configuration. "
            "Choose another name=… or delete the folder."
        )
    return checkpoint


def _steps_per_epoch(config: RunConfig, images: int) -> int:
    batches = images // (config.optimizer.batch_size * config.devices * config.num_nodes)
    return max(math.ceil(batches / config.accumulate_grad_batches), 1)


def _accelerator(config: RunConfig) -> str:
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"accelerator is not there: {config.accelerator}. PyTorch sees no GPU on this machine. "
            "Set accelerator=cpu, or see solo-minent doctor."
        )
    return config.accelerator


def _share_cores(config: RunConfig, workers: int) -> None:
    """Leaves the loader's workers a core each: OpenMP threads that wait for one spin."""
    cores = (os.cpu_count() or 1) // config.devices
    torch.set_num_threads(max(min(torch.get_num_threads(), cores - workers), 1))


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision != "auto":
        return config.precision
    bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if bf16 else "32-true"


def _announce(config: RunConfig, absolute: RunConfig, images: int, resume: Path | None) -> None:
    print(
        f"{config.method} on {config.data.dataset}: {images} images, {config.max_epochs} epochs, "
        f"global batch {config.global_batch_size}, {config.optimizer.name} with lr "
        f"{absolute.optimizer.lr:g}, solo-learn {host.VERSION}, into {config.run_dir}"
    )
    if resume:
        print(f"continuing from {resume}")
