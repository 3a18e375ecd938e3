"""Backbone weights out of any known checkpoint: all of them, rightly named and shaped, or none.

The files of this package, of solo-learn 1.0.2 and 1.0.6, of the official code of MEC, TWIST,
CorInfoMax and MinEnt, and bare state dicts (torchvision, timm): `solo_minent.weight_layouts`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from solo_minent.allowed import check_one_of
from solo_minent.backbones import STEMS, stem_of
from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.weight_files import read_weight_file
from solo_minent.weight_layouts import COUNTER, HEADS, LAYOUTS, WHICH, WRAPPERS, Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Loaded:
    """What was read.

    Attributes:
        layout: kind of file, such as `MEC checkpoint`.
        sha256: hex digest of the file.
        loaded: tensors that were found, of `total` in the backbone.
        total: tensors of the backbone, buffers included.
        ignored: tensors of the file that were not used, by the beginning of their names.
    """

    layout: str
    sha256: str
    loaded: int
    total: int
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Such as `loaded 122/122, ignored: projector (12), fc (2)`."""
        line = f"loaded {self.loaded}/{self.total}"
        if self.loaded < self.total:
            line += f", not in the file: {COUNTER} ({self.total - self.loaded})"
        if self.ignored:
            groups = ", ".join(f"{name} ({count})" for name, count in self.ignored.items())
            line += f", ignored: {groups}"
        return line


class _Reading(NamedTuple):
    """What one layout makes of a file.

    Attributes:
        layout: the layout.
        tensors: by the backbone's names, heads and strangers included.
        ignored: tensors in the layout's container that are not used, by group.
        differences: what is wrong, by name, in the order of the network.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    ignored: Counter[str]
    differences: dict[str, str]


def load_weights(path: str | Path, backbone: nn.Module, which: str = "student") -> Loaded:
    """Loads the weights of a file into a backbone, all of them or none.

    Every parameter and buffer must be there under the name that the layout gives it, in its shape,
    and finite. `num_batches_tracked` alone may be missing, all at once, from a bare state dict:
    torchvision's files are without, and evaluation does not read it. Floating-point formats are
    converted. A file with several places that fit must hold the same weights in each.

    Args:
        path: file; see `solo_minent.weight_files` for the formats.
        backbone: module of the same architecture, as `build_backbone` makes it.
        which: student or teacher, where the file has both.

    Raises:
        UserError: a file that cannot be read, of an unknown layout or with two backbones, another
            architecture or stem, or weights that are not finite.
    """
    check_one_of("which", which, WHICH)
    path = Path(path)
    contents, metadata = read_weight_file(path)
    own = backbone.state_dict()
    readings = list(_readings(contents, own, which))
    fitting = [reading for reading in readings if not reading.differences]
    if not fitting:
        raise UserError(_misfit(path, contents, metadata, readings, own, which))
    reading = fitting[0]
    values = _values(reading, own)
    for other in fitting[1:]:
        _check_same(path, reading, other, own)
    _check_stem(path, backbone, reading.layout, metadata)
    bad = [key for key, value in values.items() if not bool(value.isfinite().all())]
    if bad:
        raise UserError(
            f"weights are not finite: {path}, {len(bad)} of {len(own)} tensors hold NaN or "
            f"infinity, first {bad[0]}. A run that diverged saves such. Use an earlier checkpoint."
        )
    backbone.load_state_dict({**own, **values})
    ignored = dict(reading.ignored + _elsewhere(contents, reading.layout.container))
    layout = "solo_minent backbone" if _settings(metadata) else reading.layout.name
    return Loaded(layout, sha256(path), len(values), len(own), ignored)


def _readings(
    contents: Mapping[str, Any], own: Mapping[str, Tensor], which: str
) -> Iterator[_Reading]:
    seen = set()
    for layout in LAYOUTS:
        names = _tensors(contents, layout.container)
        place = (layout.container, layout.prefix)
        if layout.which != which or place in seen or not _signed(layout, names, contents):
            continue
        if any(name.startswith(layout.prefix) for name in names):
            seen.add(place)
            yield _compared(layout, names, own)


def _tensors(contents: Mapping[str, Any], container: str) -> dict[str, Tensor]:
    """The tensors by name under a key of the file, without what wrappers add to names."""
    import torch

    holder = contents.get(container) if container else contents
    if not isinstance(holder, Mapping):
        return {}
    tensors = {
        key: value
        for key, value in holder.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    bare = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): value
        for key, value in tensors.items()
    }
    # Where names would fall together, the wrapped ones are others than the bare ones.
    return bare if len(bare) == len(tensors) else tensors


def _signed(layout: Layout, names: Mapping[str, Tensor], contents: Mapping[str, Any]) -> bool:
    """Whether all is there by which the layout is known."""
    groups = {name.partition(".")[0] for name in names}
    if layout.groups and groups.isdisjoint(layout.groups):
        return False
    place: Any = contents
    for key in filter(None, layout.beside.split(".")):
        if not isinstance(place, Mapping) or key not in place:
            return False
        place = place[key]
    return True


def _compared(layout: Layout, names: dict[str, Tensor], own: Mapping[str, Tensor]) -> _Reading:
    prefix = layout.prefix
    inside = {
        name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)
    }
    spared = not layout.counters and not any(key.endswith(COUNTER) for key in inside)
    differences = {}
    for key, value in own.items():
        if key not in inside:
            if not (spared and key.endswith(COUNTER)):
                differences[key] = "is not in the file"
        elif (there := inside[key]).shape != value.shape:
            differences[key] = f"is {_shape(there)} in the file, {_shape(value)} in the backbone"
        elif not _plain(there) or there.is_floating_point() != value.is_floating_point():
            differences[key] = f"is {there.dtype}, {there.layout}, on {there.device.type}"
    ignored: Counter[str] = Counter()
    for name in names:
        key = name.removeprefix(prefix)
        group = key.partition(".")[0]
        if not name.startswith(prefix):
            ignored[group] += 1
        elif key not in own and group in HEADS:
            ignored[prefix + group] += 1
        elif key not in own:
            differences[key] = "is not in the backbone"
    return _Reading(layout, inside, ignored, differences)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _plain(tensor: Tensor) -> bool:
    import torch

    strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return strided and not tensor.is_quantized and not tensor.is_complex()


def _values(reading: _Reading, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inside = reading.tensors
    return {key: inside[key].to(value.dtype) for key, value in own.items() if key in inside}


def _check_same(path: Path, one: _Reading, other: _Reading, own: Mapping[str, Tensor]) -> None:
    """Refuses a file with two backbones, of which only one can be meant."""
    first, second = _values(one, own), _values(other, own)
    if all(first[key].equal(second[key]) for key in first.keys() & second.keys()):
        return
    places = [f"{r.layout.container}[{r.layout.prefix or 'all names'}]" for r in (one, other)]
    raise UserError(
        f"weights are ambiguous: {path} has two backbones, {places[0]} and {places[1]}. One was "
        "expected. Save the one that is meant alone."
    )


def _elsewhere(contents: Mapping[str, Any], container: str) -> Counter[str]:
    """Tensors under other keys of the file than the container, by key."""
    if not container:
        return Counter()
    others = {key: len(_tensors(contents, key)) for key in contents if key and key != container}
    return Counter({str(key): count for key, count in others.items() if count})


def _check_stem(
    path: Path, backbone: nn.Module, layout: Layout, metadata: Mapping[str, str]
) -> None:
    """Stems of equal kernels differ in padding and pooling, which no shape of a weight shows."""
    own, stated = stem_of(backbone), _settings(metadata).get("stem")
    if own is None:
        return
    kernel = STEMS[own].kernel_size
    # What no code of that layout makes is a fork's, and only its user knows the stem.
    alike = [name for name in layout.stems if STEMS[name].kernel_size == kernel]
    allowed = [stated] if stated in STEMS else alike
    if not allowed or own in allowed:
        return
    raise UserError(
        f"stem does not suit the weights: {own}, {path} has {' or '.join(allowed)} "
        f"({layout.name}). Padding and pooling must be those of the training. "
        f"Set backbone.stem={allowed[0]}."
    )


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The backbone's settings that our own export carries."""
    try:
        settings = json.loads(metadata.get("backbone", "{}"))
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _misfit(
    path: Path,
    contents: Mapping[str, Any],
    metadata: Mapping[str, str],
    readings: list[_Reading],
    own: Mapping[str, Tensor],
    which: str,
) -> str:
    """What to say of a file that fits in no way: how its likeliest reading differs."""
    near = [reading for reading in readings if reading.tensors.keys() & own.keys()]
    if not near:
        return _unknown(path, contents, own, which)
    best = min(near, key=lambda reading: len(reading.differences))
    key, difference = next(iter(best.differences.items()))
    return (
        f"weights do not fit: {path}, {len(best.differences)} of {len(own)} tensors differ, first "
        f"{key} {difference} ({best.layout.name}). The architecture must be the one that was "
        f"trained. {_fix(best, own, _settings(metadata))}"
    )


def _fix(best: _Reading, own: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    if settings:
        words = [f"backbone.{key}={value}" for key, value in settings.items() if value]
        return f"The file was trained with {' '.join(words)}: set these."
    key, there = next((key, best.tensors.get(key)) for key in best.differences)
    if key == "conv1.weight" and there is not None and there.ndim == 4:
        stems = best.layout.stems or STEMS
        fitting = [name for name in stems if STEMS[name].kernel_size == there.shape[-1]]
        if fitting and there.shape[-1] != own[key].shape[-1]:
            return f"Set backbone.stem={' or '.join(fitting)}."
    patches = best.tensors.get("patch_embed.proj.weight")
    if key == "pos_embed" and there is not None and there.ndim == 3 and patches is not None:
        side = math.isqrt(there.shape[1]) * patches.shape[-1]
        if there.shape[-1] == own[key].shape[-1]:
            return f"Set +backbone.kwargs.img_size={side} data.image_size={side}."
    return "Set backbone.name, backbone.stem and backbone.kwargs as in the training."


def _unknown(path: Path, contents: Mapping[str, Any], own: Mapping[str, Tensor], which: str) -> str:
    places = {key: _tensors(contents, key) for key in ["", *contents] if isinstance(key, str)}
    place = max(places, key=lambda key: len(places[key]))
    names = places[place]
    groups = Counter(name.partition(".")[0] for name in names).most_common(6)
    shown = ", ".join(f"{name} ({count})" for name, count in groups) or "no tensors by name"
    shown += f" under {place}" if place else ""
    if which == "teacher":
        return (
            f"weights of a teacher are missing: {path} has {shown}. Methods with a momentum "
            "encoder save one. Load the student."
        )
    first = next(iter(own))
    prefix = next((n[: -len(first)] for n in names if n.endswith(f".{first}")), None)
    hint = f"Save those behind {prefix} alone, without it" if prefix else "Save them alone"
    return (
        f"weights are of no known layout: {path} has {shown}. Names such as {first} or "
        f"backbone.{first} were expected. {hint}: torch.save(backbone.state_dict(), …)."
    )
