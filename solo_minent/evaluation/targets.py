"""What a command evaluates: a run, a weight file, a pretrained or untrained network, or pixels."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from solo_minent.allowed import Range, check_range
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import BACKBONE_FILE, CHECKPOINT_FILE, exported_data
from solo_minent.config import load_run
from solo_minent.data.loaders import EvalLoader, eval_loader, image_loader
from solo_minent.data.transforms import eval_transform, normalization
from solo_minent.errors import UserError
from solo_minent.evaluation import cache
from solo_minent.evaluation.blocks import LastBlocks
from solo_minent.evaluation.features import device_of, extract_features, resolve_precision
from solo_minent.evaluation.pretrained import Pretrained, from_timm, from_torchvision
from solo_minent.schema import BackboneConfig, RunConfig
from solo_minent.weight_files import SUFFIXES
from solo_minent.weights import load_weights

SPECS = (
    "trained (the run's backbone), random (the same untrained), pixels, teacher, a run folder, "
    f"a weight file ({', '.join(SUFFIXES)}), teacher:<folder or file>, a model of the zoo, "
    "torchvision:<model>, timm:<model>, random:<model>"
)


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
        kind: trained, random or pixels, or whatever `load_target` was asked for.
        backbone: module (B, 3, H, W) -> (B, num_features).
        origin: where its weights came from, for the protocol of a result.
        checkpoint_sha256: digest of the weights' file; None where there is none.
        architecture: what else than its weights makes the backbone; None keeps features of it out
            of the cache.
        mean, std: that it expects images to be normalised by, a channel; None: as the run does.
    """

    kind: str
    backbone: nn.Module
    origin: str
    checkpoint_sha256: str | None = None
    architecture: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @property
    def digest(self) -> str | None:
        """Identity of the network as it is now, weights and architecture; None of pixels."""
        if self.architecture is None:
            return None
        return cache.state_digest(self.backbone, self.architecture)


class Features(NamedTuple):
    """Features and labels of both splits: (N, D) float32 and (N,) int64, on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class EvalLoaders(NamedTuple):
    """The labelled training images and the held-out ones, under the test transform."""

    train: EvalLoader
    test: EvalLoader


def load_target(config: RunConfig, spec: str = "trained") -> Target:
    """Builds what is to be evaluated on the data of a configuration.

    - `trained`: the run's exported backbone; `teacher`: that of its last checkpoint.
    - `random`: the same backbone as it was initialised before training; `pixels`.
    - a run folder: its backbone, architecture and normalisation. Its data is not taken.
    - a weight file of any known layout (`solo_minent.weights`), for the configuration's backbone;
      normalised as it was trained if a run's folder or our own export says how, else as the run.
    - `teacher:` and a run folder or a weight file: the momentum encoder in it.
    - `torchvision:resnet50`, `torchvision:resnet50:IMAGENET1K_V2`, `timm:<model>`: published
      weights with their normalisation.
    - a model of the zoo, by its id, with its architecture and normalisation; downloaded if need be.
    - `random:resnet18`, `random:timm:<model>`: untrained, with the configuration's seed, and its
      stem where the network has one to replace.

    Args:
        config: its data, backbone and seed are used.
        spec: one of these.

    Raises:
        UserError: something else, or weights that are missing, damaged or of another architecture.
    """
    spec = str(spec)
    source, _, name = spec.partition(":")
    if spec == "pixels":
        return Target(spec, Pixels(config.data.image_size), "normalised pixels")
    if spec in ("trained", "teacher"):
        return _of_run(config, spec, config.run_dir)
    if spec == "random":
        return _untrained(config, spec, config.backbone)
    if source == "random":
        return _untrained(config, spec, _with_stem(config, name))
    if source in ("torchvision", "timm"):
        model, _, weights = name.partition(":")
        with torch.random.fork_rng():
            found = from_timm(name) if source == "timm" else from_torchvision(model, weights)
        return _published(config, spec, found)
    path = Path(name if source == "teacher" and name else spec)
    if path.is_dir():
        return _of_run(load_run(path), spec, path, config)
    if path.suffix in SUFFIXES or path.is_file():
        return _of_file(config, spec, path)
    return _of_zoo(config, spec)


def with_normalization(config: RunConfig, target: Target) -> RunConfig:
    """The configuration with the normalisation of images that the target expects."""
    if target.mean is None or target.std is None:
        return config
    return replace(config, data=replace(config.data, mean=target.mean, std=target.std))


def eval_loaders(config: RunConfig, target: Target | None = None) -> EvalLoaders:
    """The labelled training images and the held-out images, under the test transform.

    Args:
        config: of the run.
        target: whose normalisation is used, if it has its own.

    Raises:
        UserError: the data set is missing.
    """
    config = config if target is None else with_normalization(config, target)
    alone = replace(config, devices=1)  # an evaluation is one process, with all of the workers
    train, test = (
        eval_loader(alone, split, config.evaluation.batch_size) for split in ("train", "test")
    )
    return EvalLoaders(train, test)


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
    loaders: Iterable[Iterable] | None = None,
    blocks: int = 0,
    precision: str | None = None,
) -> Features:
    """Features of the labelled training images and the held-out images, test transform, once.

    Computed on the GPU if there is one, unless `config.accelerator` is cpu. With
    `evaluation.cache_features` they are kept in the run folder, `features/`, and read from there
    while weights, images and transform are the same.

    Args:
        target: what to evaluate, on images normalised as it expects.
        config: names the data.
        progress: show a bar.
        loaders: `eval_loaders(config)`, if they are at hand: their images are used, and opened once
            for several targets. Any other pair of loaders is used as it is, and nothing is kept.
        blocks: class tokens of that many last blocks of a ViT, side by side; 0: its features.
        precision: as `extract_features`; `evaluation.precision` if not given.

    Raises:
        UserError: the data set is missing, the backbone has no such blocks, or the features do not
            fit into memory.
    """
    backbone = LastBlocks(target.backbone, blocks) if blocks else target.backbone
    device = device_of(config)
    precision = resolve_precision(precision or config.evaluation.precision, device)
    own = loaders is None or isinstance(loaders, EvalLoaders)
    digest = target.digest if own and config.evaluation.cache_features else None
    if own:
        loaders = _renormalized(loaders or eval_loaders(config), config, target)
    splits: list[Tensor] = []
    for split, loader in zip(("train", "test"), loaders, strict=True):
        key = digest and cache.features_key(loader, digest, split, precision, device, blocks)
        path = key and cache.features_file(config.run_dir, key)
        found = cache.read_features(path, key) if path else None
        if found is None:
            found = extract_features(backbone, loader, device, precision, progress)
            if path:
                cache.write_features(path, key, *found)
        splits += found
    return Features(*splits)


def _renormalized(loaders: EvalLoaders, config: RunConfig, target: Target) -> EvalLoaders:
    """The same images for a target that expects another normalisation."""
    if target.mean is None:
        return loaders
    alone = with_normalization(replace(config, devices=1), target)
    data, size = alone.data, alone.evaluation.batch_size
    transform = eval_transform(data.dataset, data.image_size, *normalization(data))
    return EvalLoaders(
        *(image_loader(alone, each.dataset.images, transform, size) for each in loaders)
    )


def _of_run(run: RunConfig, spec: str, folder: Path, on: RunConfig | None = None) -> Target:
    """The backbone of a run, on the data of another one if `on` is given."""
    teacher = _is_teacher(spec)
    path = folder / (CHECKPOINT_FILE if teacher else BACKBONE_FILE)
    if not path.is_file():
        raise UserError(
            f"backbone weights are missing: {path}. A finished run folder holds "
            f"{path.relative_to(folder)}. Finish the run by starting solo-minent pretrain again "
            "with the same arguments."
        )
    constants = (None, None) if on is None else map(list, normalization(run.data))
    return _loaded(run, spec, path, (on or run).data.image_size, *constants)


def _is_teacher(spec: str) -> bool:
    return spec.partition(":")[0] == "teacher"


def _of_file(config: RunConfig, spec: str, path: Path) -> Target:
    folders = (f for f in path.absolute().parents[:2] if (f / "config.yaml").is_file())
    trained = _run_of(folder) if (folder := next(folders, None)) else None
    if trained is None:
        data = exported_data(path)
        constants = (None, None) if data is None else map(list, normalization(data))
        return _loaded(config, spec, path, config.data.image_size, *constants)
    # No weight tells padding, pooling, heads.
    if trained.backbone != config.backbone:
        raise UserError(
            f"weights are of another backbone: {path} of {_words(trained.backbone)}, this is "
            f"{_words(config.backbone)}. Name the run folder, whose backbone is then built: "
            f"--target {os.path.relpath(folder)}"
        )
    constants = map(list, normalization(trained.data))
    return _loaded(config, spec, path, config.data.image_size, *constants)


def _run_of(folder: Path) -> RunConfig | None:
    """The run of a folder; None if it is another program's."""
    try:
        return load_run(folder)
    except UserError:
        return None


def _loaded(
    config: RunConfig,
    spec: str,
    path: Path,
    image_size: int,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Target:
    backbone = _build(config.backbone, config.seed)
    _check_size(spec, backbone, image_size)
    which = "teacher" if _is_teacher(spec) else "student"
    loaded = load_weights(path, backbone, which)
    teacher = f", {which}" if which == "teacher" else ""
    origin = f"{path} ({loaded.layout}{teacher}): {loaded.line}"
    architecture = _words(config.backbone)
    return Target(spec, backbone, origin, loaded.sha256, architecture, mean, std)


def _of_zoo(config: RunConfig, spec: str) -> Target:
    from solo_minent.zoo.index import read_index
    from solo_minent.zoo.models import load_backbone

    names = [entry.id for entry in read_index()]
    if spec not in names:
        near = difflib.get_close_matches(spec, names, 1)
        raise UserError(
            f"evaluation target is unknown: {spec}. It is one of {SPECS}. "
            + (f"The zoo has {near[0]}." if near else "Leave it out to evaluate the trained run.")
        )
    model = load_backbone(spec)
    _check_size(spec, model.backbone, config.data.image_size)
    constants, network = model.entry.normalization, model.entry.backbone
    origin = f"zoo {spec} ({model.path.name}): {model.loaded.line}"
    return Target(
        spec,
        model.backbone,
        origin,
        model.loaded.sha256,
        _words(network),
        list(constants.mean),
        list(constants.std),
    )


def _untrained(config: RunConfig, spec: str, network: BackboneConfig) -> Target:
    backbone = _build(network, config.seed)
    _check_size(spec, backbone, config.data.image_size)
    name = "" if network == config.backbone else f"{_words(network)} "
    origin = f"{name}initialised with seed {config.seed}"
    return Target(spec, backbone, origin, architecture=_words(network))


def _published(config: RunConfig, spec: str, found: Pretrained) -> Target:
    _check_size(spec, found.backbone, config.data.image_size)
    origin = f"{found.origin}, images normalised by {found.mean}, {found.std}"
    return Target(spec, found.backbone, origin, found.sha256, spec, found.mean, found.std)


def _build(network: BackboneConfig, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(network.name, network.stem, **network.kwargs)


def _with_stem(config: RunConfig, name: str) -> BackboneConfig:
    """A network by name, with the configuration's stem if it has one to replace."""
    plain = _build(BackboneConfig(name), config.seed)
    stem = config.backbone.stem if hasattr(plain, "conv1") and hasattr(plain, "maxpool") else None
    return BackboneConfig(name, stem)


def _check_size(spec: str, backbone: nn.Module, image_size: int) -> None:
    """Refuses images that a network is not made for, before any is read."""
    patches = getattr(backbone, "patch_embed", None)
    expected = getattr(patches, "img_size", None)
    if not getattr(patches, "strict_img_size", False) or expected is None:
        return
    if tuple(expected) != (image_size, image_size):
        raise UserError(
            f"images do not suit the backbone: {image_size} pixels, {spec} takes {expected[0]}. "
            f"A ViT has a position for every patch. Set data.image_size={expected[0]}."
        )


def _words(network: BackboneConfig) -> str:
    return json.dumps(asdict(network), sort_keys=True)
