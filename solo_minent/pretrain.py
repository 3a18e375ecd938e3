"""One pretraining run: a configuration in, a run folder out."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from solo_minent import host
from solo_minent.backbones import build_backbone, check_images
from solo_minent.checkpoint import BACKBONE_FILE, save_backbone
from solo_minent.checkpoint_io import CheckpointFiles
from solo_minent.config import check_writable, scaled_lrs, to_yaml
from solo_minent.console import quiet_lightning
from solo_minent.data.augmentations import views_at
from solo_minent.data.images import ImageSet
from solo_minent.data.loaders import (
    eval_loader,
    num_workers,
    pretrain_images,
    pretrain_loader,
    validation_loader,
)
from solo_minent.data.transforms import normalization
from solo_minent.doctor import environment
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import check_knn_k
from solo_minent.files import write_json, write_text
from solo_minent.machine import is_slurm_task, is_torchrun
from solo_minent.meter import Meter
from solo_minent.methods import available
from solo_minent.monitors import monitors
from solo_minent.schedules import lr_factor
from solo_minent.schema import RunConfig
from solo_minent.training.callbacks import CorruptImages, EpochLog, OnlineKNN, WeightDecay
from solo_minent.training.compiled import compile_networks
from solo_minent.training.folder import ResumePoint, alone, check_fits, resume_point
from solo_minent.training.guard import NonFiniteGuard
from solo_minent.training.processes import Together
from solo_minent.training.saving import Saving
from solo_minent.training.stopping import Signals
from solo_minent.training.trainer import make_trainer


def pretrain(
    config: RunConfig,
    resume_from: Path | None = None,
    *,
    images: ImageSet | None = None,
    observers: Sequence[Callback] = (),
) -> Path:
    """Trains a method, or continues the same run where its folder left off.

    Args:
        config: a checked configuration.
        resume_from: a run folder or checkpoint to go on from, though its configuration differs.
        images: to train on in place of the data set's.
        observers: further callbacks, behind the run's own.

    Returns:
        The run folder: config.yaml, log.csv, checkpoints/last.ckpt, backbone.safetensors,
        environment.json.

    Raises:
        UserError: the folder holds another run, is in use or cannot be written, the data cannot be
            trained on, or training diverged.
        Stopped: a signal stopped the run; its checkpoint is written.
        KeyboardInterrupt: stopped at once; the last checkpoint is whole.
    """
    check_writable(config)
    resume = resume_point(config, resume_from)
    if _complete(config, resume):
        print(f"run is complete: {config.max_epochs} epochs in {config.run_dir}")
        return config.run_dir
    pl.seed_everything(config.seed, workers=True, verbose=False)
    accelerator = _accelerator(config)
    _check_processes(config)
    host.register(available()[config.method])
    images = pretrain_images(config) if images is None else images
    loaders = _eval_loaders(config) if images.classes else None
    data = _fit_data(config, images, loaders)
    absolute = scaled_lrs(config)
    module = _module(absolute, images)
    if config.compile:
        compile_networks(module, "cpu" if accelerator == "cpu" else "cuda")
    if accelerator == "cpu":
        _share_cores(config, 0 if config.data.format == "device" else num_workers(config))
    interactive = sys.stderr.isatty()
    callbacks = _callbacks(config, module, data, loaders, lines=not interactive)
    together = Together(config)
    with alone(config.run_dir), quiet_lightning(), together:
        # As it is now that no other process works there.
        resume = resume_point(config, resume_from, checksums=False)
        if resume:
            check_fits(resume, module.state_dict())
        callbacks = [together, *callbacks, *observers, together.hold_on()]
        trainer = make_trainer(config, accelerator, callbacks, CheckpointFiles(), interactive)
        if trainer.is_global_zero:
            if resume and resume.changed:  # it belongs to the configuration that goes
                (config.run_dir / BACKBONE_FILE).unlink(missing_ok=True)
            write_text(config.run_dir / "config.yaml", to_yaml(config))
            _note_environment(config.run_dir, resume)
            _announce(config, absolute, images, resume)
        trainer.fit(module, **data, ckpt_path=resume and resume.path, weights_only=True)
        if trainer.is_global_zero:
            state = host.backbone_state(module.state_dict())
            save_backbone(config.run_dir / BACKBONE_FILE, state, config)
    return config.run_dir


def _complete(config: RunConfig, resume: ResumePoint | None) -> bool:
    exported = (config.run_dir / BACKBONE_FILE).is_file()
    return resume is not None and resume.epochs >= config.max_epochs and exported


def _module(absolute: RunConfig, images: ImageSet) -> pl.LightningModule:
    """What is trained; `absolute` is the configuration with absolute learning rates."""
    backbone = absolute.backbone
    steps_per_epoch = _steps_per_epoch(absolute, len(images))
    network = build_backbone(backbone.name, backbone.stem, **backbone.kwargs)
    check_images(network, backbone.name, _view_sizes(absolute))
    module = host.build_method(
        absolute,
        network,
        lr_factor(absolute.scheduler, absolute.optimizer.lr, steps_per_epoch, absolute.max_epochs),
        num_classes=max(len(images.classes), 1),
    )
    module.partly_labelled = bool((images.targets < 0).any())
    module.meter = Meter()
    # Fused, an optimiser undoes the loss's scale itself: too late for what looks before it.
    scaled = absolute.precision == "16-mixed"
    module.fused = not (scaled and (absolute.gradient_clip_val or absolute.guard.skip))
    if absolute.channels_last:
        module.to(memory_format=torch.channels_last)
    return module


def _view_sizes(config: RunConfig) -> set[int]:
    epochs = {0, config.late_epoch or 0}
    return {view.size for epoch in epochs for view in views_at(config, epoch)}


class EvalLoaders(NamedTuple):
    """Labelled images without augmentation: the training images' and the held-out ones."""

    memory: DataLoader
    test: DataLoader


def _eval_loaders(config: RunConfig) -> EvalLoaders:
    size = config.evaluation.batch_size
    return EvalLoaders(eval_loader(config, "train", size), eval_loader(config, "test", size))


def _fit_data(config: RunConfig, images: ImageSet, loaders: EvalLoaders | None) -> dict[str, Any]:
    """Keywords for `Trainer.fit`; without labels there is nothing to validate on."""
    test = loaders and validation_loader(config, loaders.test)
    if config.data.format == "dali" and config.dali.pipeline == "solo":
        mean, std = map(list, normalization(config.data))
        data = host.fit_data(replace(config, data=replace(config.data, mean=mean, std=std)))
        data["datamodule"].val_dataloader = lambda: test or []
        return data
    return {"train_dataloaders": pretrain_loader(config, images), "val_dataloaders": test}


def _callbacks(
    config: RunConfig,
    module: pl.LightningModule,
    data: dict[str, Any],
    loaders: EvalLoaders | None,
    lines: bool,
) -> list[Callback]:
    signals = Signals()
    callbacks: list[Callback] = [signals]
    end = config.optimizer.weight_decay_end
    if end is not None:
        callbacks.append(WeightDecay(config.optimizer.weight_decay, end))
    if config.data.on_corrupt == "skip" and "train_dataloaders" in data:
        readable = data["train_dataloaders"].readable
        callbacks.append(CorruptImages(readable, config.run_dir / "corrupt.txt"))
    knn = None
    if config.evaluation.knn_every and loaders:
        check_knn_k(config, len(loaders.memory.dataset))
        knn = OnlineKNN(*loaders, config.evaluation.knn_every, config.evaluation.knn_k)
        callbacks.append(knn)
    looks = monitors(config)
    readable = getattr(data.get("train_dataloaders"), "readable", None)
    guard = NonFiniteGuard(config, readable and readable.images, [module.meter, looks])
    log = EpochLog(config.run_dir / "log.csv", knn, lines)
    corrupt = [("corrupt", each) for each in callbacks if isinstance(each, CorruptImages)]
    holders = {"meter": module.meter, "monitors": looks, **dict(corrupt)}
    saving = Saving(config, signals, holders)
    return [*callbacks, looks, guard, log, saving]


def _note_environment(run_dir: Path, resume: ResumePoint | None) -> None:
    """`environment.json`: one entry for each session that trained the run."""
    path = run_dir / "environment.json"
    earlier = []
    if resume and path.is_file():
        with contextlib.suppress(ValueError, RecursionError):  # it is no reason not to train
            earlier = json.loads(path.read_text())
    write_json(path, [*(earlier if isinstance(earlier, list) else []), environment()])


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


def _check_processes(config: RunConfig) -> None:
    """Checks that the processes of the run are there, or can be started.

    Raises:
        UserError: fewer GPUs than `devices`, several nodes without a launcher, or a launcher that
            started another number of processes.
    """
    wanted = config.devices * config.num_nodes
    launched = _launched_processes()
    if launched is not None and launched != wanted:
        raise UserError(
            f"processes do not fit: {launched} were started, devices={config.devices} and "
            f"num_nodes={config.num_nodes} make {wanted}. Each process is one device. Start as "
            "many (scripts/torchrun.sh, scripts/slurm/pretrain.sbatch), or set devices, num_nodes."
        )
    # NODE_RANK: Lightning's own way, the same command by hand on every node.
    if launched is None and config.num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise UserError(
            f"other nodes are not there: num_nodes={config.num_nodes}. Slurm or torchrun starts "
            "the run on each of them: scripts/slurm/pretrain.sbatch, scripts/torchrun.sh. On one "
            f"machine set num_nodes=1 {_same_batch(config, config.devices)}."
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.accelerator != "cpu" and config.devices > max(gpus, 1):
        raise UserError(
            f"devices are not there: {config.devices}. PyTorch sees {gpus} GPUs on this machine. "
            f"Set devices={max(gpus, 1)} {_same_batch(config, max(gpus, 1) * config.num_nodes)}"
            f"{'' if gpus else ', or accelerator=cpu'}."
        )


def _launched_processes() -> int | None:
    """How many processes torchrun or srun started; None where Lightning starts them."""
    if is_torchrun():
        return int(os.environ["WORLD_SIZE"])
    if is_slurm_task():
        return int(os.environ["SLURM_NTASKS"])
    return None


def _same_batch(config: RunConfig, processes: int) -> str:
    wanted = config.optimizer.batch_size * config.devices * config.num_nodes
    batch = math.ceil(wanted / processes)
    same = "the same" if batch * processes == wanted else f"{batch * processes}, not {wanted}, as"
    return f"optimizer.batch_size={batch} for {same} global batch"


def _share_cores(config: RunConfig, workers: int) -> None:
    """Leaves the loader's workers a core each: OpenMP threads that wait for one spin."""
    cores = (os.cpu_count() or 1) // config.devices
    torch.set_num_threads(max(min(torch.get_num_threads(), cores - workers), 1))


def _announce(
    config: RunConfig, absolute: RunConfig, images: ImageSet, resume: ResumePoint | None
) -> None:
    unlabelled = int((images.targets < 0).sum())
    print(
        f"{config.method} on {config.data.dataset}: {len(images)} images"
        f"{f' ({unlabelled} without labels)' if unlabelled else ''}, {config.max_epochs} epochs, "
        f"global batch {config.global_batch_size}, {config.optimizer.name} with lr "
        f"{absolute.optimizer.lr:g}, solo-learn {host.VERSION}, into {config.run_dir}"
    )
    if resume:
        print(f"continuing from {resume.path}, step {resume.step}")
        for line in resume.changed:
            print(f"  changed: {line}")
