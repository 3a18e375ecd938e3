"""A backbone in the format of another tool: torchvision, timm or detectron2.

Each export is checked before it is written: the other library's own model takes all of its weights
and gives the same features. detectron2's key names are those of its ResNet (stem, res2 … res5,
`conv1.norm`, `shortcut`) and the file is what its DetectionCheckpointer reads besides pickles: a
dict of `model`, `__author__` and `matching_heuristics`, here with plain tensors.
"""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from solo_minent.allowed import check_one_of
from solo_minent.backbones import STEMS, TIMM_PREFIX, build_backbone, stem_of
from solo_minent.data.transforms import normalization
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import Target
from solo_minent.files import write_bytes
from solo_minent.schema import RunConfig

FORMATS = ("torchvision", "timm", "detectron2")
SUFFIXES = {
    "torchvision": (".pth", ".pt", ".safetensors"),
    "timm": (".pth", ".pt", ".safetensors"),
    "detectron2": (".pth",),
}
DETECTRON2_DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}
DETECTRON2_DEPTHS["resnet152"] = 152
RESNETS = (
    *DETECTRON2_DEPTHS,
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
TOLERANCE = 1e-4  # of features, relative to the largest: kernels may differ, weights do not


class Architecture(NamedTuple):
    """What a backbone is called elsewhere.

    Attributes:
        name: of the model in the other library.
        stem: one of `STEMS` where it is not the model's own.
        kwargs: further arguments of its constructor.
    """

    name: str
    stem: str | None
    kwargs: dict[str, Any]


def export_backbone(config: RunConfig, target: Target, format: str, path: str | Path) -> Path:
    """Writes the target's backbone for another tool.

    torchvision and timm: a state dict without classifier, by `torch.save` (.pth, .pt; loads with
    weights_only) or as safetensors. detectron2: a .pth file for MODEL.WEIGHTS. `loading_hint` says
    how to load it.

    Args:
        config: of the run; its arguments of a timm model are used.
        target: what to export.
        format: torchvision, timm or detectron2.
        path: file to write; its folder is made.

    Returns:
        The path.

    Raises:
        UserError: unknown format or ending, a backbone that the other tool does not have, or a file
            that is there with other content.
    """
    check_one_of("format", format, FORMATS)
    path = Path(path)
    if path.suffix not in SUFFIXES[format]:
        raise UserError(
            f"export file has another ending: {path}. For {format} it ends in "
            f"{', '.join(SUFFIXES[format])}. Name it {path.stem}{SUFFIXES[format][0]}."
        )
    architecture = architecture_of(config, target, format)
    state = {k: v.detach().cpu().contiguous() for k, v in target.backbone.state_dict().items()}
    if format == "detectron2":
        state = {detectron2_key(key): value for key, value in state.items()}
    else:
        _check_equal(target.backbone, architecture, format)
    _write(path, _serialised(state, format, path.suffix, architecture))
    return path


def architecture_of(config: RunConfig, target: Target, format: str) -> Architecture:
    """The model of another tool that is the target's backbone.

    Raises:
        UserError: the other tool has none.
    """
    backbone = target.backbone
    resnet = _resnet_name(backbone)
    stem = stem_of(backbone) if resnet else None
    if format == "timm" and _is_timm(backbone):
        name = backbone.pretrained_cfg["architecture"]
        kwargs = config.backbone.kwargs if config.backbone.name == TIMM_PREFIX + name else {}
        own = config.backbone.stem if config.backbone.name == TIMM_PREFIX + name else None
        return Architecture(name, None if own == "imagenet" and resnet else own, kwargs)
    if resnet is None or (stem not in STEMS):
        raise UserError(
            f"backbone has no form in {format}: {_described(backbone)}. It has the ResNets of "
            f"torchvision ({', '.join(RESNETS)}), whichever library built them, with one of the "
            f"stems {', '.join(STEMS)}. Export with --format timm or evaluate it here."
        )
    if format == "detectron2" and (stem != "imagenet" or resnet.startswith("resnext101_64")):
        raise UserError(
            f"backbone has no form in detectron2: {resnet} with stem {stem}. Its ResNets begin "
            "with a 7x7 convolution of stride 2 and a max-pool. Export with --format torchvision."
        )
    return Architecture(resnet, None if stem == "imagenet" else stem, {})


def loading_hint(config: RunConfig, target: Target, format: str, path: str | Path) -> str:
    """How the other tool loads the file: Python, or detectron2's configuration."""
    architecture = architecture_of(config, target, format)
    if format == "detectron2":
        return _detectron2_hint(config, target, architecture.name, Path(path))
    name, arguments = architecture.name, [f"{k}={v!r}" for k, v in architecture.kwargs.items()]
    lines = ["import torch"]
    if format == "timm":
        created = ", ".join([repr(name), "num_classes=0", *arguments])
        lines += ["import timm", f"model = timm.create_model({created})"]
    else:
        lines += ["import torchvision", f"model = torchvision.models.{name}()"]
        lines.append("model.fc = torch.nn.Identity()")
    if architecture.stem:
        stem = STEMS[architecture.stem]
        lines.append(
            f"model.conv1 = torch.nn.Conv2d(3, {target.backbone.conv1.out_channels}, "
            f"{stem.kernel_size}, {stem.stride}, {stem.padding}, bias=False)"
        )
        if not stem.max_pool:
            lines.append("model.maxpool = torch.nn.Identity()")
    if Path(path).suffix == ".safetensors":
        lines[0] += "\nfrom safetensors.torch import load_file"
        lines.append(f"model.load_state_dict(load_file({str(path)!r}))")
    else:
        lines.append(f"model.load_state_dict(torch.load({str(path)!r}, weights_only=True))")
    return "\n".join(lines)


def detectron2_key(key: str) -> str:
    """detectron2's name of a tensor of torchvision's ResNets (without fc)."""
    key = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key)
    key = re.sub(r"\bbn(\d)\b", r"conv\1.norm", key)
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return key if key.startswith("res") else f"stem.{key}"


def _resnet_name(backbone: nn.Module) -> str | None:
    """Which of torchvision's ResNets has tensors of these names and shapes, first layer aside."""
    shapes = _shapes(backbone)
    if not {"conv1", "maxpool", "layer4"} <= {key for key, _ in backbone.named_children()}:
        return None
    return next((name for name in RESNETS if _known_shapes(name) == shapes), None)


@cache
def _known_shapes(name: str) -> dict[str, torch.Size]:
    from torchvision import models

    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    model.fc = nn.Identity()
    return _shapes(model)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in model.state_dict().items() if k != "conv1.weight"}


def _is_timm(backbone: nn.Module) -> bool:
    return "architecture" in (getattr(backbone, "pretrained_cfg", None) or {})


def _described(backbone: nn.Module) -> str:
    if _is_timm(backbone):
        return f"timm's {backbone.pretrained_cfg['architecture']}"
    return type(backbone).__name__


def _check_equal(backbone: nn.Module, architecture: Architecture, format: str) -> None:
    """Raises UserError unless the other library's model gives the backbone's features."""
    name = f"{TIMM_PREFIX}{architecture.name}" if format == "timm" else architecture.name
    other = build_backbone(name, architecture.stem, **architecture.kwargs)
    device = next(backbone.parameters()).device
    size = getattr(getattr(other, "patch_embed", None), "img_size", None) or (64, 64)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    modes = {module: module.training for module in backbone.modules()}
    try:
        other.load_state_dict(backbone.state_dict())
        backbone.eval()
        with torch.no_grad():
            wanted = backbone(images.to(device)).cpu()
            found = other.eval()(images)
        error = (found - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-12)
        reason = f"features differ by {error:.1e} of the largest" if error > TOLERANCE else None
    except RuntimeError as failure:
        reason = " ".join(str(failure).split())[:200]
    finally:
        for module, mode in modes.items():
            module.training = mode
    if reason:
        raise UserError(
            f"{format} does not have this backbone: {architecture.name}, {reason}. An export loads "
            "whole and gives equal features. Use another --format."
        )


def _serialised(
    state: dict[str, Tensor], format: str, suffix: str, architecture: Architecture
) -> bytes:
    if suffix == ".safetensors":
        from safetensors.torch import save

        # One entry: the order of several is left to chance, and files could not be compared.
        stem = architecture.stem or "its own"
        return save(state, {"model": f"{format} {architecture.name}, stem: {stem}"})
    content: dict[str, Any] = dict(state)
    if format == "detectron2":
        content = {"model": content, "__author__": "solo_minent", "matching_heuristics": True}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    if path.exists():
        if path.is_file() and path.read_bytes() == data:
            return
        raise UserError(
            f"file is there with other content: {path}. An export overwrites nothing. "
            "Choose another name, or delete it."
        )
    write_bytes(path, data)


def _detectron2_hint(config: RunConfig, target: Target, name: str, path: Path) -> str:
    mean, std = ([round(255 * v, 3) for v in values] for values in normalization(config.data))
    if target.mean is not None and target.std is not None:
        mean, std = ([round(255 * v, 3) for v in values] for values in (target.mean, target.std))
    lines = [
        "MODEL:",
        f'  WEIGHTS: "{path}"',
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        "  RESNETS:",
        f"    DEPTH: {DETECTRON2_DEPTHS.get(name, 101 if '101' in name else 50)}",
        "    STRIDE_IN_1X1: False",
    ]
    if name in ("resnet18", "resnet34"):
        lines.append("    RES2_OUT_CHANNELS: 64")
    if "resnext" in name or "wide" in name:
        groups, width = {"50_32x4d": (32, 4), "101_32x8d": (32, 8)}.get(name[7:], (1, 128))
        lines += [f"    NUM_GROUPS: {groups}", f"    WIDTH_PER_GROUP: {width}"]
    return "\n".join([*lines, "INPUT:", '  FORMAT: "RGB"'])
