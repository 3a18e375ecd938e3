"""The classes that a run's own heads predict, without any label: TWIST's and MinEnt's.

TWIST estimates class distributions: the class is the largest output of the head (section 4 of
arXiv 2110.07402; its batch norm runs on the running statistics). A head of MinEnt assigns an image
to the largest output after the normalisation over the batch (`minent_targets`); here the batch is
all of the images at once, so that the order and size of batches do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.config import scaled_lrs
from solo_minent.errors import UserError
from solo_minent.losses import minent_targets
from solo_minent.methods import available
from solo_minent.weight_files import read_weight_file
from solo_minent.weights import load_weights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from solo_minent.schema import RunConfig

METHODS = ("minent", "twist")
TOP = 5
_ROWS = 1024  # images that go through a head at once


class Network(NamedTuple):
    """What predicts classes: the student (the only network of most methods) or the teacher.

    Attributes:
        backbone: images (B, 3, H, W) -> features (B, F).
        projector: features -> what the method's loss takes.
        has_teacher: whether the method has a student and a teacher.
        epochs: of training.
        origin: the checkpoint, and what was read from it.
        checkpoint_sha256: digest of the checkpoint.
    """

    backbone: nn.Module
    projector: nn.Module
    has_teacher: bool
    epochs: int
    origin: str
    checkpoint_sha256: str


class Prediction(NamedTuple):
    """What one head says of N images.

    Attributes:
        head: its width, with a number behind it where several heads have that width.
        rule: how an output becomes a class, in words.
        classes: int64 (N,), the predicted class.
        ranked: int64 (N, 5 or the width if that is smaller), the most probable classes, the most
            probable first; None where the head gives no probabilities.
    """

    head: str
    rule: str
    classes: Tensor
    ranked: Tensor | None


def load_network(config: RunConfig, which: str = "student") -> Network:
    """A network of a run's last checkpoint, all of its weights or none.

    Args:
        config: of the run.
        which: student or teacher.

    Raises:
        UserError: the checkpoint is missing or damaged, of another architecture or method, or
            there is no teacher.
    """
    path = config.run_dir / CHECKPOINT_FILE
    if not path.is_file():
        raise UserError(
            f"checkpoint is missing: {path}. The classes that a method predicts come from its own "
            "heads, which a run folder keeps there. Train the run with solo-minent pretrain."
        )
    contents, _ = read_weight_file(path)
    state, epoch = contents.get("state_dict"), contents.get("epoch")
    if not isinstance(state, Mapping) or not isinstance(epoch, int):
        raise UserError(
            f"checkpoint is damaged: {path} (no state_dict and epoch). A file that solo-minent "
            "pretrain saved was expected. Restore it, or train the run again."
        )
    module = _build(config)
    if which == "teacher" and not module.teacher:
        raise UserError(
            f"run has no teacher: {config.run_dir}. {config.method} trained one network. "
            "Evaluate the trained run."
        )
    teacher = which == "teacher"
    backbone = module.teacher_backbone if teacher else module.backbone
    projector = module.teacher_projector if teacher else module.projector
    loaded = load_weights(path, backbone, which)
    count = _load(projector, state, "teacher_projector." if teacher else "projector.", path)
    parts = f"backbone {loaded.loaded}/{loaded.total}, heads {count}/{count}"
    return Network(
        backbone,
        projector,
        module.teacher,
        epoch + 1,
        f"{path} ({loaded.layout}, {which}): loaded {parts}",
        loaded.sha256,
    )


@torch.inference_mode()
def predict(
    config: RunConfig, network: Network, features: Tensor, device: str | torch.device = "cpu"
) -> Iterator[Prediction]:
    """Predictions of every head of a network, one head after the other.

    A head of MinEnt needs about 16 N d bytes for its d outputs.

    Args:
        config: of the run; its method is one of `METHODS`.
        network: out of `load_network`; its projector is put into eval mode.
        features: (N, F) of the network's backbone in eval mode.
        device: where the heads are computed.

    Raises:
        UserError: outputs that are not finite.
    """
    projector = network.projector.eval().to(device)
    if config.method == "twist":
        logits = _outputs(lambda rows: projector([rows])[0], features, device)
        ranked = logits.topk(min(TOP, logits.shape[1])).indices
        yield Prediction(str(logits.shape[1]), "argmax of softmax", logits.argmax(1), ranked)
        return
    norm = config.method_kwargs["norm"]
    rule = f"argmax of the outputs after norm={norm} over these images"
    heads = list(projector.heads)
    for name, head in zip(_names(config.method_kwargs["heads"]), heads, strict=True):
        logits = _outputs(head, features, device)
        yield Prediction(name, rule, minent_targets(logits, norm), None)


def _outputs(head: Any, features: Tensor, device: str | torch.device) -> Tensor:
    parts = [head(rows.to(device)).float().cpu() for rows in features.split(_ROWS)]
    outputs = torch.cat(parts)
    if not outputs.isfinite().all():
        raise UserError(
            "head gives outputs that are not finite: NaN or infinity. The training has probably "
            "diverged. Evaluate a run whose loss is finite."
        )
    return outputs


def _names(widths: list[int]) -> list[str]:
    """`256`, or `128 no. 2` for the second of several."""
    seen: Counter[int] = Counter()
    names = []
    for width in widths:
        seen[width] += 1
        several = widths.count(width) > 1
        names.append(f"{width} no. {seen[width]}" if several else str(width))
    return names


def _build(config: RunConfig) -> LightningModule:
    b = config.backbone
    host.register(available()[config.method])
    with torch.random.fork_rng():
        backbone = build_backbone(b.name, b.stem, **b.kwargs)
        # Neither the schedule nor the online classifier is used.
        return host.build_method(scaled_lrs(config), backbone, lambda step: 1.0, num_classes=1)


def _load(projector: nn.Module, state: Mapping[str, Any], prefix: str, path: Path) -> int:
    """Loads the tensors below a prefix, all or none; their number."""
    found = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, Tensor)
    }
    own = projector.state_dict()
    wrong = [
        key
        for key in [*own, *(found.keys() - own.keys())]
        if key not in own or key not in found or found[key].shape != own[key].shape
    ]
    if wrong:
        raise UserError(
            f"checkpoint does not fit: {path}, {len(wrong)} of {len(own)} tensors of the heads "
            f"differ in name or shape, first {prefix}{wrong[0]}. They must be those that were "
            "trained. Leave method_kwargs as in the run's config.yaml."
        )
    projector.load_state_dict(found)
    return len(own)
