"""Features of a split in a file: read back when weights, images and transform are the same.

What they depend on makes the file's name and is written into it, so a file is used for exactly the
features that it holds; one that is damaged or of something else is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from solo_minent.data.h5 import H5Images
from solo_minent.data.images import ArrayImages, FileImages, ImageSet, MappedImages
from solo_minent.data.transforms import ToNormalizedTensor
from solo_minent.errors import UserError
from solo_minent.files import write_bytes

if TYPE_CHECKING:
    from solo_minent.data.loaders import EvalLoader

FOLDER = "features"
FORMAT = "solo_minent features 1"
PACKAGES = ("torch", "torchvision", "timm", "pillow")  # that decode, resize and compute


def state_digest(module: nn.Module, *also: str) -> str:
    """Hex digest of all parameters and buffers of a module: names, formats, values.

    Args:
        module: on any device.
        also: what else makes it the one it is.
    """
    found = hashlib.sha256("\0".join(also).encode())
    for name, value in module.state_dict().items():
        found.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        # Bytes, whatever the format: NumPy has no bfloat16.
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(flat.numpy())
    return found.hexdigest()


def images_digest(images: ImageSet) -> str | None:
    """Hex digest of a set of images with their labels, in order; None of an unknown kind of set.

    Arrays by their pixels; files by path, size and time of the last change.
    """
    found = hashlib.sha256(type(images).__name__.encode())
    found.update(np.ascontiguousarray(images.targets))
    if isinstance(images, ArrayImages):
        found.update(f"{images.images.shape}".encode())
        found.update(np.ascontiguousarray(images.images))
    elif isinstance(images, MappedImages):
        found.update(np.ascontiguousarray(images.rows))
        _add_files(found, images.files)
    elif isinstance(images, FileImages):
        _add_files(found, [os.fsdecode(path) for path in images.paths.tolist()])
    elif isinstance(images, H5Images):
        found.update(images.names.tobytes())
        _add_files(found, [images.path])
    else:
        return None
    return found.hexdigest()


def features_key(
    loader: EvalLoader, digest: str, split: str, precision: str, device: str, blocks: int
) -> dict[str, Any] | None:
    """Everything that the features of a loader's images depend on; None where that is not known.

    Args:
        loader: of the images, with their transform.
        digest: of the network.
        split: train or test.
        precision: of the computation, as `resolve_precision` gives it.
        device: cpu or cuda.
        blocks: of a ViT that are taken.
    """
    images = images_digest(loader.dataset.images)
    transform = _transform(loader.dataset.transform)
    if images is None or transform is None:
        return None
    return {
        "network": digest,
        "blocks": blocks,
        "precision": precision,
        "device": device,
        "split": split,
        "images": images,
        "count": len(loader.dataset),
        "skip_corrupt": loader.dataset.skip_corrupt,
        "transform": transform,
        "versions": {package: version(package) for package in PACKAGES},
    }


def features_file(run_dir: Path, key: Mapping[str, Any]) -> Path:
    """Where the features of a key lie in a run folder."""
    name = hashlib.sha256(_text(key).encode()).hexdigest()[:32]
    return run_dir / FOLDER / f"{name}.safetensors"


def read_features(path: Path, key: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Features float32 (N, D) and labels int64 (N,) of a key; None, with a note, if unusable."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != _text(key):
                return _unusable(path, "it is of something else")
            features, labels = file.get_tensor("features"), file.get_tensor("labels")
    except (SafetensorError, OSError, ValueError) as error:
        return _unusable(path, " ".join(str(error).split())[:160])
    rows, count = len(features), key["count"]
    good = features.ndim == 2 and features.dtype == torch.float32
    good = good and labels.shape == (rows,) and labels.dtype == torch.int64
    if not good or not (rows == count or (key["skip_corrupt"] and 0 < rows < count)):
        return _unusable(path, "its tensors are not those of the images")
    return features, labels


def write_features(path: Path, key: Mapping[str, Any], features: Tensor, labels: Tensor) -> None:
    """Writes features whole or not at all; says so where the file system refuses."""
    from safetensors.torch import save

    tensors = {"features": features.contiguous(), "labels": labels.contiguous()}
    metadata = {"format": FORMAT, "key": _text(key)}
    try:
        write_bytes(path, save(tensors, metadata))
    except (OSError, UserError) as error:
        reason = " ".join(str(error).split())[:160]
        print(f"features are not kept: {path} ({reason})", file=sys.stderr)


def _unusable(path: Path, reason: str) -> None:
    print(f"kept features are not used: {path} ({reason}). They are made again.", file=sys.stderr)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _transform(transform: Any) -> list[str] | None:
    """The steps of a test transform in words; None of one that does not say what it does."""
    steps = []
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, ToNormalizedTensor):
            steps.append(f"mean {step.mean.flatten().tolist()} std {step.std.flatten().tolist()}")
        elif " object at 0x" in repr(step) or repr(step).startswith("<"):
            return None
        else:
            steps.append(repr(step))
    return steps


def _add_files(found: Any, paths: list[str] | list[Path]) -> None:
    for path in paths:
        try:
            status = os.stat(path)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # whoever reads the image says what is wrong
            stamp = "missing"
        found.update(f"\0{os.path.abspath(path)}\0{stamp}".encode("utf-8", "surrogateescape"))
