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
    """Linear evaluation of a frozen backbone; the defaults are MinEnt's protocol.

    The backbone computes in `evaluation.precision`, the linear layer and the loss in float32.

    Attributes:
        name: of the protocol, for the result.
        max_epochs, batch_size: of the linear layer's training, in one process.
        optimizer: sgd, adam, adamw or larc (SGD on gradients scaled by 0.001 ||w|| / ||g||).
        momentum: of sgd and larc.
        lr: absolute, or per 256 images if scale_lr; so are final_lr and sweep.
        scheduler: of the rate, by epoch: exponential (final_lr in the last epoch), cosine
            (final_lr after the last epoch) or step (times gamma at each of lr_decay_epochs).
        head_norm: none, or batchnorm: one without weights (eps 1e-6) before the linear layer.
        init: of the linear layer, default (PyTorch's) or normal (weights N(0, 0.01), bias 0).
        augment: random crops and flips of the training images, which the backbone sees anew in
            every epoch; else its features are computed once.
        crop_scale: smallest and largest share of an image in a crop.
        interpolation: of crops and of test images, bilinear or bicubic.
        resize: short side of a test image before the central crop, per 224 pixels of image_size;
            null for the data set's own test transform.
        blocks: class tokens of that many last blocks of a ViT, side by side; 0 for its features.
        sweep: further learning rates, all trained in one pass and falling in the same proportion;
            one that diverges has nothing right.
        sweep_part: share of the training images that is held out to choose among the rates.
    """

    name: str = "minent"
    max_epochs: int = 500
    batch_size: int = 1000
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 5e-6
    lr: float = 1e-2
    scale_lr: bool = False
    scheduler: str = "exponential"
    final_lr: float = 1e-6
    lr_decay_epochs: list[int] = field(default_factory=list)
    gamma: float = 0.1
    head_norm: str = "none"
    init: str = "default"
    augment: bool = False
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    interpolation: str = "bilinear"
    resize: int | None = None
    blocks: int = 0
    sweep: list[float] = field(default_factory=list)
    sweep_part: float = 0.1


@dataclass
class FinetuneConfig:
    """Training of a whole network on few or all labels; the defaults are TWIST's for all labels.

    Keys that LinearConfig has, too, mean the same.

    Attributes:
        lr, backbone_lr: of the linear layer and of the backbone, absolute.
        scheduler: cosine (to 0 after the last epoch) or step.
        gamma, backbone_gamma: what step multiplies the two rates by.
        precision: of the backbone: 32 (no TF32), tf32, bf16-mixed, 16-mixed or auto. The linear
            layer and the loss are float32.
    """

    name: str = "twist_100"
    max_epochs: int = 30
    batch_size: int = 256
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr: float = 0.2
    backbone_lr: float = 0.01
    scheduler: str = "cosine"
    lr_decay_epochs: list[int] = field(default_factory=list)
    gamma: float = 0.1
    backbone_gamma: float = 0.1
    head_norm: str = "none"
    init: str = "normal"
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    interpolation: str = "bilinear"
    resize: int | None = 256
    precision: str = "32"


@dataclass
class DetectConfig:
    """Fine-tuning of a detector on the backbone; defaults: MoCo's on VOC07+12 (protocol voc_c4).

    Attributes:
        head: c4 (on layer3, layer4 being the head) or fpn (feature pyramid).
        box_head: of fpn: 4conv1fc with batch norm, or 2fc.
        mask: Mask R-CNN; the data needs segmentations.
        steps: of training, of `batch_size` images over all processes.
        lr: absolute, of that batch.
        weight_decay_norm: of the scales and shifts of norms.
        warmup_steps: the rate rises linearly from `warmup_factor` of it.
        lr_steps: where the rate is multiplied by `gamma`.
        min_sizes: short sides in pixels, one drawn an image; test_size in the test. The long side
            is at most `max_size`.
        precise_bn: batches that the running statistics of batch norms are taken from when trained.
        checkpoint_every: steps between two checkpoints.
    """

    name: str = "voc_c4"
    head: str = "c4"
    box_head: str = "2fc"
    mask: bool = False
    steps: int = 24000
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_norm: float = 0.0
    warmup_steps: int = 100
    warmup_factor: float = 1e-3
    lr_steps: list[int] = field(default_factory=lambda: [18000, 22000])
    gamma: float = 0.1
    min_sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    max_size: int = 1333
    test_size: int = 800
    precise_bn: int = 200
    checkpoint_every: int = 1000


@dataclass
class EvaluationConfig:
    """Of every evaluation; `linear`, `finetune` and `detect` are protocols.

    Attributes:
        knn_every: epochs between two kNN evaluations while pretraining, 0 for none.
        precision: of frozen features: 32 (no TF32), tf32, bf16-mixed, 16-mixed or auto.
        cache_features: keep them in the run folder and read them back.
    """

    batch_size: int = 256
    knn_every: int = 10
    knn_k: int = 5
    precision: str = "32"
    cache_features: bool = True
    linear: LinearConfig = field(default_factory=LinearConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)


@dataclass
class CheckpointConfig:
    """When `checkpoints/last.ckpt` is written; the end of the run always is such a moment.

    Attributes:
        every_epochs: epochs between two checkpoints.
        every_steps: optimiser steps between two, besides those; None for none.
        every_minutes: of the clock, likewise, at the step after them.
    """

    every_epochs: int = 1
    every_steps: int | None = None
    every_minutes: float | None = None


@dataclass
class GuardConfig:
    """What a loss or gradient that is not finite does.

    Attributes:
        skip: steps that are passed over without an update, in the whole run, before one ends it.
    """

    skip: int = 0


@dataclass
class RunConfig:
    """Everything that decides a pretraining run.

    From epoch `late_epoch` on, counted from 0, views are made by `late_augmentations` (TWIST's
    second stage crops harder). `monitor_every`: batches between two looks of the monitors, the last
    batch of an epoch always being one; 0 for none. `compile`: backbone and heads by torch.compile,
    in the first step (it takes a while). `process_timeout`: minutes that a process waits
    for the others before the run ends.
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
    compile: bool = False
    seed: int = 0
    output_dir: str = "runs"
    folder: str | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    monitor_every: int = 50
    process_timeout: float = 30.0

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
