"""The protocols of linear evaluation and fine-tuning in words, for the results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from solo_minent.config import protocol, protocols
from solo_minent.evaluation.training import INIT_STD

if TYPE_CHECKING:
    from solo_minent.schema import DetectConfig, FinetuneConfig, LinearConfig


def name_of(kind: str, settings: LinearConfig | FinetuneConfig | DetectConfig) -> str:
    """The protocol's name, and which of its values are others."""
    if settings.name not in protocols(kind):
        return settings.name
    lines = [line.removeprefix(f"evaluation.{kind}.") for line in protocol(kind, settings.name)]
    preset = {key: json.loads(text) for key, _, text in (line.partition("=") for line in lines)}
    other = [key for key, value in preset.items() if getattr(settings, key) != value]
    return f"{settings.name} with other {', '.join(other)}" if other else settings.name


def describe_training(
    settings: LinearConfig | FinetuneConfig, batch_size: int, rates: str
) -> list[str]:
    """Optimiser, rates, head and length of a protocol in words."""
    optimizer = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "larc": "LARC"}
    words = optimizer[settings.optimizer]
    if settings.optimizer in ("sgd", "larc"):
        words += f" momentum {settings.momentum:g}"
    head = "weights from PyTorch's default"
    if settings.init == "normal":
        head = f"weights from N(0, {INIT_STD:g})"
    if settings.head_norm != "none":
        head = f"batch norm before the linear layer, {head}"
    return [
        f"{words}, {rates}, weight decay {settings.weight_decay:g}, batch {batch_size}",
        head,
        f"last epoch of {settings.max_epochs}",
    ]


def describe_rate(
    settings: LinearConfig | FinetuneConfig, rate: str, final_lr: float, gamma: float
) -> str:
    """A learning rate and how it falls in words."""
    if settings.scheduler != "step":
        return f"{rate} {settings.scheduler} to {final_lr:g}"
    epochs = ", ".join(map(str, settings.lr_decay_epochs)) or "none"
    return f"{rate} times {gamma:g} at epochs {epochs}"


def describe_images(settings: LinearConfig | FinetuneConfig, augment: bool = True) -> str:
    """Crops of training images and the test transform in words."""
    mode = settings.interpolation
    test = "the data set's test transform"
    if settings.resize is not None:
        test = f"{mode} resize {settings.resize}/224 and centre crop"
    if not augment:
        return f"features computed once under {test}"
    low, high = settings.crop_scale
    return f"{mode} random crops ({low:g}, {high:g}) and flips, tested under {test}"
