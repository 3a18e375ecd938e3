"""Models of the zoo, built and loaded: every tensor of the file that the index names, or none."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from solo_minent.backbones import build_backbone
from solo_minent.data.transforms import eval_transform
from solo_minent.errors import UserError
from solo_minent.weights import Loaded, load_weights
from solo_minent.zoo.download import fetch
from solo_minent.zoo.index import find_model, python_name, read_index, zoo_folder
from solo_minent.zoo.schema import Entry

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ZooModel:
    """A model that is ready to be evaluated.

    Attributes:
        backbone: images (B, 3, H, W) -> features (B, feature_dim), in eval mode.
        transform: RGB PIL image -> float32 (3, image_size, image_size), as it was evaluated.
        feature_dim: length of a feature.
        entry: of the index: data set, metrics, licence, …
        loaded: how many tensors came from the file; its `line` says it.
        path: of the file.
    """

    backbone: nn.Module
    transform: Callable[[Image], Tensor]
    feature_dim: int
    entry: Entry
    loaded: Loaded
    path: Path


def load_backbone(name: str, zoo: Path | None = None, offline: bool = False) -> ZooModel:
    """A model of the zoo, downloaded if it is not there.

    Args:
        name: its id, such as minent-resnet18-cifar10.
        zoo: folder of the index; SOLO_MINENT_ZOO or the package's own if not given.
        offline: download nothing.

    Raises:
        UserError: no such model, no way to have its file, or a file that does not load whole.
    """
    zoo = zoo or zoo_folder()
    entry = find_model(name, zoo)
    return load_file(entry, fetch(entry.file, zoo, offline))


def load_file(entry: Entry, path: Path) -> ZooModel:
    """A model of the zoo out of a file that is at hand; its hash is the caller's to check.

    Raises:
        UserError: the file does not load whole, or the index says another length of features.
    """
    network = entry.backbone
    backbone = build_backbone(network.name, network.stem, **network.kwargs)
    if backbone.num_features != entry.feature_dim:
        raise UserError(
            f"feature_dim of {entry.id} is wrong: {entry.feature_dim}, its backbone has "
            f"{backbone.num_features}. The index must say what the network has. Correct it."
        )
    loaded = load_weights(path, backbone, entry.which)
    constants = entry.normalization
    transform = eval_transform(
        entry.dataset, constants.image_size, list(constants.mean), list(constants.std)
    )
    return ZooModel(backbone.eval(), transform, entry.feature_dim, entry, loaded, path)


def list_models(pattern: str = "*") -> list[str]:
    """Ids of the models that match a pattern, such as `minent-*`."""
    return [entry.id for entry in read_index() if fnmatch.fnmatchcase(entry.id, pattern)]


def create_model(name: str, pretrained: bool = True, num_classes: int = 0) -> nn.Module:
    """As `timm.create_model`: a model of the zoo, with or without its weights.

    Args:
        name: id, with - or _ between its words.
        pretrained: load the weights; else they are as PyTorch initialises them.
        num_classes: outputs of an untrained linear layer behind the backbone; 0 for features.

    Returns:
        The backbone in eval mode, or Sequential(backbone, head).

    Raises:
        UserError: as `load_backbone`.
    """
    ids = {python_name(entry.id): entry.id for entry in read_index()}
    name = ids.get(name, name)
    if pretrained:
        backbone = load_backbone(name).backbone
    else:
        network = find_model(name).backbone
        backbone = build_backbone(network.name, network.stem, **network.kwargs).eval()
    if not num_classes:
        return backbone
    return nn.Sequential(backbone, nn.Linear(backbone.num_features, num_classes))
