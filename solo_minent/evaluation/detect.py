"""Detection and instance segmentation: a detector is trained on the backbone, all of it.

Faster R-CNN (https://arxiv.org/abs/1506.01497) and Mask R-CNN (https://arxiv.org/abs/1703.06870)
of torchvision on COCO- and VOC-format data, in the settings of `evaluation.detect`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from solo_minent.checkpoint_io import CheckpointFiles, read_checkpoint
from solo_minent.console import progress_bar, quiet_lightning
from solo_minent.data.loaders import num_workers
from solo_minent.data.transforms import normalization
from solo_minent.errors import UserError
from solo_minent.evaluation.detection_data import DetectionData
from solo_minent.evaluation.detection_loader import DetectionImages, detection_loader
from solo_minent.evaluation.detection_training import DetectorTraining, Stretches
from solo_minent.evaluation.protocols import name_of
from solo_minent.evaluation.results import check_storable, store_result
from solo_minent.evaluation.targets import Target
from solo_minent.files import write_json
from solo_minent.schema import DetectConfig, RunConfig


def detect_eval(
    config: RunConfig,
    target: Target,
    train: DetectionData,
    test: DetectionData,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a detector on the target's backbone, tests it and stores the result.

    An interrupted training goes on from its last checkpoint, in the run folder's
    `detect/<data>-<protocol>-<digest>/`; other settings, data or weights have another folder. The
    state after the last step is what is tested. Images a step are `batch_size` over all of the
    `devices` and `num_nodes`; the first process tests.

    Args:
        config: of the run; `evaluation.detect`, seed, workers, devices and normalisation are used.
        target: what was trained, with a ResNet of torchvision or timm.
        train, test: splits, of `detection_data`, `coco_data` or `voc_data`.
        progress: show bars.

    Returns:
        The stored result: ap, ap50, ap75 in percent and more, see `DetectionMetrics.compute`; empty
        on processes other than the first.

    Raises:
        UserError: the backbone, the data and the settings do not fit, an image cannot be used, or
            training diverged.
    """
    from solo_minent.evaluation.detection_models import build_detector, check_stages

    settings = config.evaluation.detect
    check_storable(config)
    check_stages(target.backbone)
    _check_splits(settings, train, test)
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    _check_processes(config, cuda)
    images = DetectionImages(train, training=True, masks=settings.mask)
    if not len(images):
        raise UserError(
            f"nothing to train on: {train.name}, {len(train.images)} images. Those with an object "
            "that is no crowd are trained on. Name another training set."
        )
    pl.seed_everything(config.seed, workers=True, verbose=False)
    mean, std = normalization(config.data)
    if target.mean is not None and target.std is not None:
        mean, std = target.mean, target.std
    model = build_detector(target.backbone, settings, len(train.classes), mean, std)
    folder = _folder(config, target, train, (mean, std))
    module = DetectorTraining(model, images, settings, config.seed, num_workers(config))
    resume = folder / "last.ckpt"
    with quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=math.ceil(settings.steps / settings.checkpoint_every),
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            accelerator="gpu" if cuda else "cpu",
            devices=config.devices,
            num_nodes=config.num_nodes,
            sync_batchnorm=cuda,  # torch's has no CPU kernel
            callbacks=[Stretches(folder)],
            plugins=[CheckpointFiles()],
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=progress and sys.stderr.isatty(),
            default_root_dir=folder,
        )
        if trainer.is_global_zero:
            _announce(settings, train, test, images, folder)
        trainer.fit(module, ckpt_path=_checked(resume), weights_only=True)
    if not trainer.is_global_zero:
        return {}
    metrics = _test(model.to("cuda" if cuda else "cpu"), test, settings, config, progress)
    return store_result(
        config,
        target,
        "detect",
        _protocol(settings, train, config.devices * config.num_nodes if cuda else 1),
        metrics,
        {"train": len(images), "test": len(test.images)},
        dataset=train.name,
        classes=len(train.classes),
        steps=settings.steps,
        left_out=train.left_out + test.left_out,
        annotations_sha256={"train": train.digest, "test": test.digest},
    )


@torch.no_grad()
def _test(
    model: nn.Module,
    test: DetectionData,
    settings: DetectConfig,
    config: RunConfig,
    progress: bool,
) -> dict[str, float]:
    """Metrics of one image after the other."""
    from solo_minent.evaluation.detection_metrics import DetectionMetrics

    metrics = DetectionMetrics(settings.mask, voc=test.train_on_ignored)
    images = DetectionImages(test, training=False, masks=settings.mask)
    loader = detection_loader(
        images, [[index] for index in range(len(images))], num_workers(config)
    )
    model.eval()
    model.transform.min_size = (settings.test_size,)
    device = next(model.parameters()).device
    with progress_bar(progress) as bar:
        for batch in bar.track(loader, total=len(images), description="testing"):
            if isinstance(batch, UserError):
                raise batch
            found = model([image.to(device) for image in batch[0]])
            metrics.update(found, batch[1])
    return metrics.compute()


def _check_splits(settings: DetectConfig, train: DetectionData, test: DetectionData) -> None:
    if train.classes != test.classes:
        raise UserError(
            f"classes differ: {len(train.classes)} in training, {len(test.classes)} in the test. "
            "A test set is read with the training set's. Pass classes=train.classes to its reader."
        )
    if not any((~image.ignored).any() for image in test.images):
        raise UserError(
            f"nothing to find: the test split of {test.name} has no object in {len(test.images)} "
            "images. Precision needs some. Name another test set."
        )
    if not settings.mask:
        return
    _check_pycocotools()
    for split, data in (("training", train), ("test", test)):
        if not data.masks:
            raise UserError(
                f"masks are not annotated: the {split} split of {data.name}. Mask R-CNN needs a "
                "segmentation of each object. Set evaluation.detect.mask=false."
            )


def _check_processes(config: RunConfig, cuda: bool) -> None:
    _check_pycocotools()
    processes = config.devices * config.num_nodes
    size = config.evaluation.detect.batch_size
    if size % processes:
        raise UserError(
            f"batch does not divide: evaluation.detect.batch_size={size} over {processes} "
            f"processes. It is all of theirs. Set evaluation.detect.batch_size={processes}, "
            "or devices=1."
        )
    if cuda and config.devices > torch.cuda.device_count():
        raise UserError(
            f"devices are not there: {config.devices}. PyTorch sees {torch.cuda.device_count()} "
            f"GPUs on this machine. Set devices={torch.cuda.device_count()}."
        )


def _check_pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise UserError(
            "package is missing: pycocotools. It reads masks and computes COCO's metrics. "
            "Install it: pip install 'solo-minent[detect]'"
        ) from error


def _folder(config: RunConfig, target: Target, train: DetectionData, constants: tuple) -> Path:
    """Where this training is kept; a training with other settings is kept elsewhere."""
    mean, std = constants
    facts = {
        "settings": asdict(config.evaluation.detect),
        "seed": config.seed,
        "processes": config.devices * config.num_nodes,
        "target": target.kind,
        "weights": target.checkpoint_sha256 or target.origin,
        "architecture": target.architecture,
        "normalization": [list(mean), list(std)],
        "annotations": train.digest,
    }
    facts["settings"].pop("test_size")
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    name = config.evaluation.detect.name
    folder = config.run_dir / "detect" / f"{train.name}-{name}-{digest}"
    write_json(folder / "settings.json", facts)
    return folder


def _checked(path: Path) -> Path | None:
    """The checkpoint, if there is one, and that it can be read."""
    if not path.is_file():
        return None
    read_checkpoint(path)
    return path


def _announce(
    settings: DetectConfig,
    train: DetectionData,
    test: DetectionData,
    images: DetectionImages,
    folder: Path,
) -> None:
    print(
        f"detection on {train.name}: {len(images)} of {len(train.images)} training images have "
        f"objects, {len(test.images)} test images, {len(train.classes)} classes, "
        f"{settings.steps} steps of {settings.batch_size} images, into {folder}"
    )
    if train.left_out + test.left_out:
        print(f"left out: {train.left_out + test.left_out} objects with a wrong box")


def _protocol(s: DetectConfig, train: DetectionData, processes: int) -> str:
    kind = "Mask R-CNN" if s.mask else "Faster R-CNN"
    where = "C4, layer4 and a batch norm as the head" if s.head == "c4" else f"FPN, {s.box_head}"
    stairs = " and ".join(map(str, s.lr_steps)) or "no step"
    sides = f"{min(s.min_sizes)} to {max(s.min_sizes)} ({len(s.min_sizes)} sizes)"
    norms = "synchronised" if processes > 1 else "trained"
    ignored = "trained on and ignored in the test" if train.train_on_ignored else "ignored"
    return (
        f"{name_of('detect', s)}: {kind} {where}, torchvision, every layer trained, "
        f"{s.steps} steps of {s.batch_size} images, SGD, lr {s.lr:g}, "
        f"momentum {s.momentum:g}, weight decay "
        f"{s.weight_decay:g} ({s.weight_decay_norm:g} on norms), warm-up {s.warmup_steps} steps "
        f"from {s.warmup_factor:g}, x {s.gamma:g} at {stairs}, flips, short side {sides}, long "
        f"side to {s.max_size}, test {s.test_size}, batch norm {norms}, its statistics of "
        f"{s.precise_bn} batches, {'difficult' if train.train_on_ignored else 'crowd'} objects "
        f"{ignored}, COCO metrics, last step"
    )
