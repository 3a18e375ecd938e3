"""What `models.yaml` says of a model: every key, its type, and what may be missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from solo_minent.schema import MISSING, BackboneConfig

MAX_BYTES = 1 << 34  # of one file
FORMATS = {"safetensors": (".safetensors",), "pytorch": (".pth", ".pt", ".ckpt", ".tar")}
DTYPES = ("float32", "float16", "bfloat16", "mixed")


@dataclass
class FileEntry:
    """A file and where it is.

    Attributes:
        name: in cache, mirrors and repository; no other file of the index has it.
        bytes, sha256: what decides whether a file is this one, wherever it came from.
        format: one of `FORMATS`; nothing in either is run.
        dtype: of the weights in it.
        urls: where it is to be had, in the order in which they are tried: `https://…`,
            `http://…` (the hash decides), `hf://<owner>/<repository>/<path>@<revision>`, or a path
            below the folder of `models.yaml`.
    """

    name: str = MISSING
    bytes: int = MISSING
    sha256: str = MISSING
    format: str = "safetensors"
    dtype: str = "float32"
    urls: list[str] = field(default_factory=list)


@dataclass
class Normalization:
    """Constants a channel, for pixels in [0, 1], and the side of the images in pixels."""

    mean: list[float] = MISSING
    std: list[float] = MISSING
    image_size: int = MISSING


@dataclass
class Metric:
    """A number that the file reproduces.

    Attributes:
        evaluation: online (the classifier that was trained along), linear or knn.
        protocol: in words, with every hyper-parameter.
        top1: accuracy in percent on `images` held-out images, of the last epoch.
        seeds: runs that it is of; the file is of the entry's seed.
    """

    evaluation: str = MISSING
    protocol: str = MISSING
    top1: float = MISSING
    images: int | None = None
    seeds: int = 1


@dataclass
class Entry:
    """One model.

    Attributes:
        id: its name.
        ours: trained by this project; else `page` says whose it is.
        files: the weights of the backbone first.
        which: student or teacher, where the file has both.
        feature_dim: length of a feature.
        train_images: that it was trained on, where these are not all of the data set.
        batch_size: images of an optimiser step, over all processes.
        hours: of training on `hardware`.
        recipe: name of the recipe; `config` is what became of it, resolved.
        config, log, results, environment: files below the folder of `models.yaml`.
        commit: of the code that trained it.
    """

    id: str = MISSING
    ours: bool = MISSING
    files: list[FileEntry] = MISSING
    which: str = "student"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    feature_dim: int = MISSING
    normalization: Normalization = field(default_factory=Normalization)
    dataset: str = MISSING
    method: str = MISSING
    train_images: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    precision: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    licence: str = MISSING
    page: str | None = None
    recipe: str | None = None
    config: str | None = None
    log: str | None = None
    results: str | None = None
    environment: str | None = None
    commit: str | None = None
    date: str | None = None
    hours: float | None = None
    hardware: str | None = None

    @property
    def file(self) -> FileEntry:
        """The weights of the backbone."""
        return self.files[0]


# What an entry of ours has, and one of somebody else's.
OURS = (
    *("epochs", "batch_size", "seed", "precision", "metrics"),
    *("config", "log", "results", "environment", "commit", "date"),
)
THEIRS = ("page",)


def plain(value: Any) -> Any:
    """A dataclass as plain values, without what is not set."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v is not None and v != {} and v != []}
    return [plain(v) for v in value] if isinstance(value, list) else value


def words_of(entry: Entry) -> dict[str, Any]:
    """What is told of a model in a table."""
    knn, linear = (
        next((m.top1 for m in entry.metrics if m.evaluation == name), None)
        for name in ("knn", "linear")
    )
    return {
        "id": entry.id,
        "method": entry.method,
        "backbone": " ".join(filter(None, [entry.backbone.name, entry.backbone.stem])),
        "data set": entry.dataset,
        "epochs": entry.epochs,
        "kNN": knn,
        "linear": linear,
        "MB": entry.file.bytes / 1e6,
        "": "" if entry.ours else "not ours",
    }
