"""A model of somebody else's, in the index: where its file is, its hash, its page and licence."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo_minent.backbones import build_backbone
from solo_minent.data.transforms import NORMALIZATION
from solo_minent.errors import UserError
from solo_minent.files import write_atomic
from solo_minent.schema import BackboneConfig
from solo_minent.weights import Loaded, load_weights
from solo_minent.zoo.cache import cached, make_place
from solo_minent.zoo.index import INDEX, adding, check_entry, read_index, write_index
from solo_minent.zoo.schema import DTYPES, FORMATS, Entry, FileEntry, Normalization


@dataclass(frozen=True)
class External:
    """What is to be added: `file` is at hand, `page` says whose it is and how to get it."""

    file: Path
    id: str
    architecture: str
    dataset: str
    method: str
    licence: str
    page: str
    image_size: int = 224
    stem: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    which: str = "student"
    urls: tuple[str, ...] = ()
    epochs: int | None = None
    batch_size: int | None = None


def add_external(request: External, zoo: Path) -> tuple[Entry, Loaded]:
    """Adds the entry, once all weights have loaded. The file goes to the cache, not to the zoo.

    Raises:
        UserError: the file does not load whole into that architecture, the id is taken, or a value
            is none of the index.
    """
    backbone = build_backbone(request.architecture, request.stem, **request.kwargs)
    loaded = load_weights(request.file, backbone, request.which)
    suffix = request.file.suffix
    format = next(name for name, endings in FORMATS.items() if suffix in endings)
    mean, std = NORMALIZATION.get(request.dataset, NORMALIZATION["custom"])
    file = FileEntry(
        name=f"{request.id}{suffix}",
        bytes=request.file.stat().st_size,
        sha256=loaded.sha256,
        format=format,
        dtype=_dtype(request.file),
        urls=list(request.urls),
    )
    entry = Entry(
        id=request.id,
        ours=False,
        files=[file],
        which=request.which,
        backbone=BackboneConfig(request.architecture, request.stem, request.kwargs),
        feature_dim=backbone.num_features,
        normalization=Normalization(list(mean), list(std), request.image_size),
        dataset=request.dataset,
        method=request.method,
        epochs=request.epochs,
        batch_size=request.batch_size,
        licence=request.licence,
        page=request.page,
    )
    check_entry(zoo, entry)
    with adding(zoo):
        entries = read_index(zoo)
        if any(other.id == entry.id for other in entries):
            raise UserError(
                f"model is there: {entry.id} in {zoo / INDEX}. Nothing of the zoo is overwritten. "
                "Choose another --id, or remove its entry first."
            )
        _keep(request.file, file)
        write_index(zoo, [*entries, entry])
    return entry, loaded


def _dtype(path: Path) -> str:
    """Of the weights in a file."""
    import torch

    from solo_minent.weight_files import read_weight_file

    def dtypes(value: Any) -> set[str]:
        if isinstance(value, torch.Tensor):
            return {str(value.dtype).removeprefix("torch.")} if value.is_floating_point() else set()
        inner = value.values() if hasattr(value, "values") else ()
        return set().union(*map(dtypes, inner))

    found = dtypes(read_weight_file(path)[0])
    return found.pop() if len(found) == 1 and found < set(DTYPES) else "mixed"


def _keep(source: Path, file: FileEntry) -> None:
    """Puts the file where a download of it would be."""
    make_place(file)
    write_atomic(cached(file), lambda part: shutil.copyfile(source, part))
