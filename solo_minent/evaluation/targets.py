"""What a command evaluates: a trained run, the same network untrained, or raw pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_minent.allowed import Range, check_range
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import BACKBONE_FILE, load_backbone, sha256
from solo_minent.data.loaders import eval_loader
from solo_minent.errors import UserError
from solo_minent.evaluation.features import extract_features
from solo_minent.schema import RunConfig

KINDS = ("trained", "random", "pixels")


class Pixels(nn.Module):
    """Normalised images as features: (B, 3, H, W) -> (B, 3 H W)."""

    def __init__(self, image_size: int):
        super().__init__()
        self.num_features = 3 * image_size * image_size

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@dataclass
class Target:
    """Something that turns images into features.

    Attributes:
        kind: trained, random or pixels.
        backbone: module (B, 3, H, W) -> (B, num_features).
        origin: where its weights came from, for the protocol of a result.
        checkpoint_sha256: digest of the weights' file; None where there is none.
    """

    kind: str
    backbone: nn.Module
    origin: str
    checkpoint_sha256: str | None = None


class Features(NamedTuple):
    """Features and labels of both splits: (N, D) float32 and (N,) int64, on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_target(config: RunConfig, kind: str = "trained") -> Target:
    """Builds what is to be evaluated, on the run that a configuration describes.

    Args:
        config: of the run; its data, backbone and seed are used.
        kind: `trained` (the run's exported backbone), `random` (the same backbone as it was
            initialised before training) or `pixels`.

    Raises:
        UserError: unknown kind, or weights that are missing, damaged or of another architecture.
    """
    if kind not in KINDS:
        raise UserError(
            f"evaluation target is unknown: {kind}. It is one of {', '.join(KINDS)}. "
            "Leave it out to evaluate the trained run."
        )
    if kind == "pixels":
        return Target(kind, Pixels(config.data.image_size), "normalised pixels")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        b = config.backbone
        backbone = build_backbone(b.name, b.stem, **b.kwargs)
    if kind == "random":
        return Target(kind, backbone, f"initialised with seed {config.seed}")
    path = config.run_dir / BACKBONE_FILE
    report = load_backbone(path, backbone)
    return Target(kind, backbone, f"{path}: {report}", sha256(path))


def eval_loaders(config: RunConfig) -> tuple[DataLoader, DataLoader]:
    """The labelled training images and the held-out images, under the test transform.

    Raises:
        UserError: the data set is missing.
    """
    alone = replace(config, devices=1)  # an evaluation is one process, with all of the workers
    train, test = (
        eval_loader(alone, split, config.evaluation.batch_size) for split in ("train", "test")
    )
    return train, test


def check_knn_k(config: RunConfig, images: int, key: str = "evaluation.knn_k") -> None:
    """Checks that there are as many training images as neighbours.

    Args:
        config: its `evaluation.knn_k` is checked.
        images: size of the training set.
        key: what the user sets the number with.

    Raises:
        UserError: there are fewer.
    """
    check_range(key, config.evaluation.knn_k, Range(1, min(5, images), high=images))


def features_of(
    target: Target,
    config: RunConfig,
    progress: bool = True,
    loaders: tuple[DataLoader, DataLoader] | None = None,
) -> Features:
    """Features of the labelled training images and the held-out images, test transform, once.

    Computed on the GPU if there is one, unless `config.accelerator` is cpu.

    Args:
        target: what to evaluate.
        config: names the data.
        progress: show a bar.
        loaders: `eval_loaders(config)`, if they are at hand.

    Raises:
        UserError: the data set is missing.
    """
    cuda = config.accelerator != "cpu" and torch.cuda.is_available()
    splits = []
    for loader in loaders or eval_loaders(config):
        device = "cuda" if cuda else "cpu"
        splits += extract_features(target.backbone, loader, device, progress=progress)
    return Features(*splits)
