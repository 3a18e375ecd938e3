"""The schema of a run: every key, its type and its default.

Key names are those of solo-learn's own YAML files where it has the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value


@dataclass
class BackboneConfig:
    """name: `resnet18` (torchvision) or `timm:<model>`; stem: imagenet, cifar, small or solo."""

    name: str = MISSING
    stem: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Which images, and how they are read.

    Attributes:
        dataset: one of `solo_minent.data.datasets.DATASETS`.
        root: folder of the data set.
        format: image_folder (PIL in worker processes), dali, h5 (train.h5 and val.h5 in `root`) or
            device (the whole set on the accelerator).
        num_workers: loader processes of a rank (DALI: its threads).
        image_size: side of the large views, in pixels.
        train_images, val_images: seeded stratified subsets.
        file_list: text file that names the training images to use, `<class>/<file>` or `<file>`.
        on_corrupt: what an image that cannot be decoded does: `error` ends the run and names it,
            `skip` puts the next image in its place and counts it.
        mean, std: of each channel, for pixels in [0, 1]; the data set's own if not given.
    """

    dataset: str = MISSING
    root: str | None = None
    format: str = "image_folder"
    num_workers: int = 2
    image_size: int = MISSING
    train_images: int | None = None
    file_list: str | None = None
    on_corrupt: str = "error"
    val_images: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class DaliConfig:
    """For `data.format: dali`.

    Attributes:
        device: where it decodes and augments: cpu, gpu, or auto (gpu if there is one). The default
            is what the tests run.
        pipeline: own (the same views as image_folder, whichever solo-learn is installed) or solo
            (solo-learn's: its seeds and its order know neither `seed` nor a restart).
    """

    device: str = "cpu"
    pipeline: str = "own"


@dataclass
class OptimizerConfig:
    """lr: per 256 images if scale_lr, else absolute; batch_size: images per process and step.

    weight_decay_end: weight decay goes there in half a cosine over the steps of the run.
    """

    name: str = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    scale_lr: bool = False
    classifier_lr: float = MISSING
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    exclude_bias_n_norm: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class SchedulerConfig:
    """Learning rate over the run, see `solo_minent.schedules.lr_factor`; scales as lr does."""

    name: str = "warmup_cosine"
    interval: str = "step"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_start_lr: float = 0.0
    min_lr: float = 0.0
    lr_decay_epochs: list[int] = field(default_factory=list)
    gamma: float = 0.1
    restart_epoch: int | None = None
    restart_lr: float | None = None
    restart_warmup_epochs: float = 0.0


@dataclass
class LinearConfig:
    """Linear probe on cached features; defaults: MinEnt's protocol (Adam, exponential decay)."""

    max_epochs: int = 500
    batch_size: int = 1000
    lr: float = 1e-2
    final_lr: float = 1e-6
    weight_decay: float = 5e-6


@dataclass
class EvaluationConfig:
    """knn_every: epochs between two kNN evaluations while pretraining, 0 for none."""

    batch_size: int = 256
    knn_every: int = 10
    knn_k: int = 5
    linear: LinearConfig = field(default_factory=LinearConfig)


@dataclass
class RunConfig:
    """Everything that decides a pretraining run.

    From epoch `late_epoch` on, counted from 0, views are made by `late_augmentations` (TWIST's
    second stage crops harder).
    """

    name: str = "default"
    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    dali: DaliConfig = field(default_factory=DaliConfig)
    augmentations: list[Any] = field(default_factory=list)
    late_epoch: int | None = None
    late_augmentations: list[Any] = field(default_factory=list)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    max_epochs: int = MISSING
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    sync_batchnorm: bool = True
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "auto"
    channels_last: bool = True
    seed: int = 0
    output_dir: str = "runs"
    folder: str | None = None
    checkpoint_every: int = 1

    @property
    def global_batch_size(self) -> int:
        """Images of one optimiser step over all ranks, nodes and accumulated batches."""
        return (
            self.optimizer.batch_size * self.devices * self.num_nodes * self.accumulate_grad_batches
        )

    @property
    def run_dir(self) -> Path:
        """Where the run's files go: `folder`, or output_dir/dataset/method/name."""
        if self.folder:
            return Path(self.folder)
        return Path(self.output_dir) / self.data.dataset / self.method / self.name
