"""Training steps to be timed: of our methods and of solo-learn's, all driven the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.config import load_recipe, scaled_lrs
from solo_minent.data.datasets import ArrayImages, ImageSet
from solo_minent.data.loaders import pretrain_images, pretrain_loader
from solo_minent.errors import UserError
from solo_minent.host.peers import build_peer
from solo_minent.meter import Meter
from solo_minent.methods import available
from solo_minent.schema import RunConfig
from solo_minent.training.compiled import compile_networks

METHODS = ("minent", "mec", "twist", "corinfomax")
CLASSES = 10
# Random pixels, where the data set's folder is not given: batches for two windows of the loop.
RANDOM_IMAGES, RANDOM_BATCHES = 10_000, 80


def step_configs(
    methods: Sequence[str] = METHODS, overrides: Sequence[str] = (), dataset: str = "cifar10"
) -> list[RunConfig]:
    """The recipe of each method, all with these overrides.

    Such as optimizer.batch_size=64, precision=32, data.format=device.
    """
    return [load_recipe(f"{dataset}/{method}", list(overrides)) for method in methods]


def bench_images(config: RunConfig) -> ImageSet:
    """The images of a run; of CIFAR without `data.root` random pixels, whose loader costs the same.

    A run on them has no labels, and so no evaluations.
    """
    if config.data.root or not config.data.dataset.startswith("cifar"):
        return pretrain_images(config)
    count = max(RANDOM_IMAGES, RANDOM_BATCHES * config.optimizer.batch_size)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ArrayImages(pixels, np.zeros(count, np.int64), [], "random pixels")


def device_of(config: RunConfig) -> torch.device:
    """Where a run computes."""
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def precision_of(config: RunConfig) -> str:
    """`32-true` or `bf16-mixed`, as the run's Trainer has it.

    Raises:
        UserError: it is another one.
    """
    found = config.precision
    if found == "auto":
        cuda = device_of(config).type == "cuda" and torch.cuda.is_bf16_supported()
        found = "bf16-mixed" if cuda else "32-true"
    found = {"32": "32-true", "bf16": "bf16-mixed"}.get(found, found)
    if found not in ("32-true", "bf16-mixed"):
        raise UserError(
            f"precision is not measured: {found}. A step is timed in 32 or bf16-mixed. "
            "Set precision=32."
        )
    return found


def about(config: RunConfig) -> dict[str, Any]:
    """The columns that say what was measured."""
    device = device_of(config)
    return {
        "method": config.method,
        "backbone": config.backbone.name,
        "device": device.type,
        "batch": config.optimizer.batch_size,
        "precision": precision_of(config),
    }


class Side:
    """A method with its optimiser on its device; calling it makes one training step.

    Zero gradients, forward and loss under autocast, backward, the optimiser's update and the
    teacher's: what Lightning does between two batches that are there, without Lightning. Our
    methods log into their meter; solo-learn's log nothing, since Lightning's own way of it is left
    out. What a run of ours chooses besides (`compile`, fused optimisers), solo-learn's do not have.

    Args:
        config: of the run.
        batch: of `one_batch`, on the device.
        peer: a method of solo-learn's to build in place of the run's own.
    """

    def __init__(self, config: RunConfig, batch: list, peer: str | None = None) -> None:
        self.config, self.batch, self.device = config, batch, device_of(config)
        self.precision = precision_of(config)
        pl.seed_everything(config.seed, workers=False, verbose=False)
        backbone = build_backbone(
            config.backbone.name, config.backbone.stem, **config.backbone.kwargs
        )
        if peer is None:
            host.register(available()[config.method])
            self.module = host.build_method(
                scaled_lrs(config), backbone, lambda step: 1.0, num_classes=CLASSES
            )
            self.module.meter, self.module.fused = Meter(), True
        else:
            self.module = build_peer(peer, scaled_lrs(config), backbone, CLASSES)
            self.module.log = self.module.log_dict = lambda *args, **kwargs: None
        if config.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.module.to(self.device).train()
        if config.compile and peer is None:
            compile_networks(self.module, self.device.type)
        made = self.module.configure_optimizers()
        self.optimizer = made["optimizer"] if peer is None else made
        self._join(made["lr_scheduler"]["scheduler"] if peer is None else None)
        self.loss = torch.tensor(torch.nan)

    def _join(self, scheduler: LRScheduler | None) -> None:
        """Puts the module into a run that is under way, as far as a step looks at it."""
        steps, schedulers = 1000, [SimpleNamespace(scheduler=scheduler)]
        self.module.trainer = SimpleNamespace(
            global_step=steps // 10,
            estimated_stepping_batches=steps,
            current_epoch=self.config.max_epochs // 10,
            max_epochs=self.config.max_epochs,
            training=True,
            validating=False,
            lr_scheduler_configs=schedulers if scheduler else [],
        )
        self.module.on_train_start()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "32-true":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.module.training_step(self.batch, 0)
        loss.backward()
        self.optimizer.step()
        if getattr(self.module, "teacher", False):
            self.module.update_teacher(self.progress())
        self.loss = loss.detach()

    def progress(self) -> Any:
        return self.module._progress(self.module.trainer.global_step)


def one_batch(config: RunConfig) -> list:
    """`[indexes, [view, …], targets]` of a run's loader, on the CPU, pinned for a GPU."""
    own = replace(config, data=replace(config.data, num_workers=0, train_images=None))
    images = bench_images(own)
    count = min(len(images), config.optimizer.batch_size)
    loader = pretrain_loader(own, images.select(np.arange(count)))
    loader.set_epoch(0)
    indexes, views, _ = next(iter(loader))
    targets = torch.arange(count) % CLASSES
    batch = [indexes.cpu(), [view.cpu() for view in views], targets]
    if device_of(config).type == "cuda":
        return [batch[0].pin_memory(), [v.pin_memory() for v in batch[1]], targets.pin_memory()]
    return batch


def to_device(batch: list, device: torch.device) -> list:
    """A batch on a device, as Lightning moves it."""
    indexes, views, targets = batch

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return [moved(indexes), [moved(view) for view in views], moved(targets)]
