"""Backbones with the weights that torchvision and timm publish, fetched and kept by them."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

from solo_minent.allowed import check_one_of
from solo_minent.backbones import TIMM_PREFIX, build_backbone
from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.weights import load_weights


class Pretrained(NamedTuple):
    """A backbone with published weights.

    Attributes:
        backbone: module (B, 3, H, W) -> (B, num_features).
        origin: which weights, and how many of them were loaded.
        sha256: hex digest of their file; None where the library does not hand it out.
        mean: that the weights expect images to be normalised by, a channel, for pixels in [0, 1].
        std: likewise.
    """

    backbone: nn.Module
    origin: str
    sha256: str | None
    mean: list[float]
    std: list[float]


def from_torchvision(name: str, weights: str = "") -> Pretrained:
    """One of torchvision's ResNets. Its file is checked against the digest in its name.

    Args:
        name: of the model, such as resnet50.
        weights: of its weights, such as IMAGENET1K_V2; torchvision's default if empty.

    Raises:
        UserError: unknown names, no connection, or a file that is another one.
    """
    from torchvision.models import get_model_weights

    backbone = build_backbone(name)
    known = get_model_weights(name)
    if weights:
        check_one_of(f"weights of {name}", weights, [choice.name for choice in known])
    chosen = known[weights] if weights else known.DEFAULT
    file = Path(urlparse(chosen.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    stated = re.search(r"-([0-9a-f]{8,})\.", file)
    digest = stated.group(1) if stated else ""
    if not path.is_file():
        _download(f"torchvision:{name}", chosen.url, path, digest)
    elif not (own := sha256(path)).startswith(digest):
        raise UserError(
            f"downloaded weights are damaged: {path} has sha256 {own[:16]}…, its name says "
            f"{digest}. Delete it to fetch it again: rm {path}"
        )
    loaded = load_weights(path, backbone)
    constants = chosen.transforms()
    origin = f"torchvision {name} {chosen.name} ({file}): {loaded.line}"
    return Pretrained(backbone, origin, loaded.sha256, list(constants.mean), list(constants.std))


def from_timm(name: str) -> Pretrained:
    """A model of timm with its pretrained weights, all of them or none.

    Args:
        name: of the model, with or without a tag, such as vit_small_patch16_224.dino.

    Raises:
        UserError: unknown name, no weights of that name, or no connection.
    """
    import timm

    backbone = build_backbone(f"{TIMM_PREFIX}{name}")
    timm.models.set_pretrained_check_hash(True)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # its retries, a line each; the error below says it once
    try:
        # With its classifier: without, timm lets tensors be missing.
        model = timm.create_model(name, pretrained=True)
    # Hub, network and timm each raise errors of their own.
    except Exception as error:
        raise _unavailable(f"timm:{name}", error) from error
    finally:
        hub.setLevel(level)
    model.reset_classifier(0)
    backbone.load_state_dict(model.state_dict())
    published = model.pretrained_cfg
    source = published.get("hf_hub_id") or published.get("url") or published.get("file") or "timm"
    tag = f".{published['tag']}" if published.get("tag") else ""
    count = len(backbone.state_dict())
    origin = f"timm {published.get('architecture', name)}{tag} ({source}): loaded {count}/{count}"
    return Pretrained(
        backbone,
        origin,
        None,
        [float(m) for m in model.pretrained_cfg["mean"]],
        [float(s) for s in model.pretrained_cfg["std"]],
    )


def _download(spec: str, url: str, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = sys.stderr.isatty()
    try:
        torch.hub.download_url_to_file(url, str(path), digest or None, progress=shown)
    except (OSError, RuntimeError) as error:
        raise _unavailable(spec, error, f" Or put the file of {url} at {path}.") from error


def _unavailable(spec: str, error: Exception, other: str = "") -> UserError:
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words.partition(". ")[0].rstrip(".")[:200]
    return UserError(
        f"pretrained weights cannot be had: {spec} ({reason}). They are downloaded once and kept. "
        f"Connect this machine, or name a weight file in their place.{other}"
    )
