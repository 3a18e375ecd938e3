"""Adaptations that both versions of solo-learn need, and small things around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchvision import transforms
from torchvision.datasets import ImageFolder

from solo_minent.errors import UserError

UMAP_MISSING = (
    "solo-learn's UMAP callback cannot be imported: it needs umap, wandb, seaborn, pandas and "
    "matplotlib. Run `pip install umap-learn wandb seaborn pandas matplotlib`."
)
DALI_MISSING = (
    "DALI is not installed: data.format=dali needs it. Run `pip install nvidia-dali-cuda130` (or "
    "nvidia-dali-cuda120; both run on the CPU too), or set data.format=image_folder."
)
# Sets of one file that solo-learn reads through torchvision, and their folder in data.root.
PIXEL_SETS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class UpdateOnlyMetric(Metric):
    """Between solo-learn's kNN classifier and torchmetrics: `forward` stores, and does no more.

    `compute_on_step=False` was removed in torchmetrics 0.11: the constructor raises "Unexpected
    keyword arguments: `compute_on_step`", and without the keyword every batch would compute a kNN
    over what is stored so far (or fail on an empty list).
    """

    def __init__(self, *, compute_on_step: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)


def knn_class(original: type[Metric]) -> type[Metric]:
    """solo-learn's kNN classifier on top of `UpdateOnlyMetric`."""
    names = {"__module__": original.__module__, "__doc__": original.__doc__}
    return type(original.__name__, (original, UpdateOnlyMetric), names)


def clamped_accuracy(original: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """solo-learn's `accuracy_at_k` with k at most the number of classes."""

    def accuracy_at_k(
        outputs: Tensor, targets: Tensor, top_k: Sequence[int] = (1, 5)
    ) -> list[Tensor]:
        return original(outputs, targets, tuple(min(k, outputs.size(1)) for k in top_k))

    return accuracy_at_k


class View:
    """An object with some attributes replaced; everything else is the object's own."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        vars(self).update(replaced, _target=target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def subclass(original: type, mixins: Sequence[type], module: str) -> type:
    """A class of the same name with mixins in front, to be found under `module`."""
    names = {"__module__": module, "__doc__": original.__doc__}
    return type(original.__name__, (*mixins, original), names)


@dataclass
class LinearConfig:
    """Linear evaluation; defaults are solo-learn's ImageNet-100 recipe.

    Attributes:
        num_classes: classes of the data set.
        max_epochs: epochs.
        batch_size: images per process and step.
        optimizer: sgd, lars or adam; on the source also adamw.
        lr: absolute learning rate.
        weight_decay: weight decay.
        scheduler: step, warmup_cosine (10 epochs of warm-up) or none; per epoch.
        lr_decay_steps: epochs at which `step` divides the rate by ten.
        optimizer_kwargs: further keywords of the optimiser, such as momentum.
    """

    num_classes: int
    max_epochs: int = 100
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.3
    weight_decay: float = 0.0
    scheduler: str = "step"
    lr_decay_steps: Sequence[int] = (60, 80)
    optimizer_kwargs: Mapping[str, Any] = field(default_factory=dict)


LINEAR_SCHEDULERS = ("step", "warmup_cosine", "none")


def augmentations(config: Any) -> list[DictConfig]:
    """The augmentation pipelines of a run, in the layout of solo-learn's YAML files.

    One without num_crops makes one view, one without crop_size views of the image size, one
    without rrc no crop. What is not enabled is left out.
    """
    pipelines = OmegaConf.create(list(config.augmentations))
    for pipeline in pipelines:
        sections = [key for key in pipeline if isinstance(pipeline[key], DictConfig)]
        for name in sections:
            if name != "rrc" and pipeline[name].get("enabled") is False:
                del pipeline[name]
        if not pipeline.get("rrc"):
            pipeline.rrc = {"enabled": False}
        pipeline.setdefault("num_crops", 1)
        pipeline.crop_size = pipeline.get("crop_size") or config.data.image_size
    return list(pipelines)


def dali_device(config: Any) -> str:
    """Where solo-learn's DALI pipeline runs: gpu or cpu."""
    if config.dali.device != "auto":
        return config.dali.device
    return "gpu" if torch.cuda.is_available() else "cpu"


# What solo-learn's own transforms do where our schema leaves a choice.
_FIXED = {"order": None, "affine": None, "rrc.interpolation": "bicubic"} | {
    "gaussian_blur.radius": [0.1, 2.0]
}


def check_supported(config: Any) -> None:
    """Checks that solo-learn's own loaders and transforms can make the views of a run.

    Raises:
        UserError: what they cannot.
    """
    for key, only in (("train_images", None), ("file_list", None), ("on_corrupt", "error")):
        value = getattr(config.data, key)
        if value != only:
            raise UserError(
                f"solo-learn's loaders have no data.{key}: {value}. They read every image of "
                f"data.root. Set dali.pipeline=own, or data.{key}={only or 'null'}."
            )
    if config.late_epoch is not None:
        raise UserError(
            f"late_augmentations are not in solo-learn: late_epoch={config.late_epoch}. Its "
            "transforms are those of the whole run. Set dali.pipeline=own."
        )
    for pipeline in augmentations(config):
        for key, only in _FIXED.items():
            value = OmegaConf.select(pipeline, key)
            if value is not None and value != only:
                raise UserError(
                    f"augmentation is not in solo-learn: {key}={value}. Its transforms have a "
                    "fixed order, no affine map, bicubic crops and blur radii in [0.1, 2]. "
                    "Set dali.pipeline=own."
                )


def crop_counts(pipelines: Sequence[DictConfig]) -> tuple[int, int]:
    """How many large and small crops the pipelines give; a large one is as large as the first."""
    large = sum(p.num_crops for p in pipelines if p.crop_size == pipelines[0].crop_size)
    return large, sum(p.num_crops for p in pipelines) - large


def normalization(config: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel: the run's, or ImageNet's."""
    return list(config.data.mean or IMAGENET_MEAN), list(config.data.std or IMAGENET_STD)


def select(pipeline: DictConfig, key: str, default: Any) -> Any:
    """A value of an augmentation pipeline; a missing section means that it is off."""
    value = OmegaConf.select(pipeline, key)
    return default if value is None else value


def data_root(config: Any) -> Path:
    """The data set's folder, which holds `train/<class>/<image>`, or torchvision's CIFAR.

    Raises:
        UserError: there is none.
    """
    root = Path(config.data.root or ".")
    # CIFAR is looked for here, or solo-learn would download it.
    wanted = f"{PIXEL_SETS.get(config.data.dataset, 'train/*')}/*"
    if not any(root.glob(wanted)):
        raise UserError(
            f"data.root has no images: {root}. They were looked for in "
            f"{wanted.replace('*/*', '<class>/<image>')}. Set data.root to the folder of the "
            "data set."
        )
    return root


def val_loader(
    config: Any, root: Path, prepare_dataloaders: Callable[..., tuple[DataLoader, DataLoader]]
) -> DataLoader | None:
    """solo-learn's validation loader of `<root>/val`, at the run's image size and normalisation.

    solo-learn's own transform for folders is fixed at 224 pixels; ours follows it: the shorter
    side is resized to 256/224 of the image size (to the image size below 128 pixels), then the
    centre is taken.
    """
    if not (root / "val").is_dir():
        return None
    size = config.data.image_size
    mean, std = normalization(config)
    transform = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224) if size >= 128 else size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    images = ImageFolder(str(root / "val"), transform)
    _, loader = prepare_dataloaders(
        images, images, batch_size=config.optimizer.batch_size, num_workers=config.data.num_workers
    )
    return loader
