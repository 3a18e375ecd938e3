"""solo-learn 1.0.2's own loaders for a folder of images, and for CIFAR."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from solo.utils import classification_dataloader, pretrain_dataloader

from solo_minent.errors import UserError
from solo_minent.host import shared

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from solo_minent.schema import RunConfig


def on_cpu(original: type) -> type:
    """A DALI pipeline class of solo-learn that asks for no GPU when its device is "cpu"."""
    from nvidia.dali.pipeline import Pipeline

    signature = inspect.signature(original.__init__)

    class HostPipeline(Pipeline):
        # solo-learn adds the device id to the seed before it gets here, so that only here it may
        # become None, which means "no GPU".
        def __init__(
            self, batch_size: int, num_threads: int, device_id: int, seed: int, **kwargs: Any
        ) -> None:
            device_id = None if self._wanted_device == "cpu" else device_id
            super().__init__(batch_size, num_threads, device_id, seed, **kwargs)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self._wanted_device = signature.bind(self, *args, **kwargs).arguments["device"]
        original.__init__(self, *args, **kwargs)

    names = {"__module__": original.__module__, "__doc__": original.__doc__, "__init__": __init__}
    return type(original.__name__, (original, HostPipeline), names)


def fit_data(config: RunConfig) -> dict[str, Any]:
    """Keywords for `Trainer.fit` from `<root>/train` (or CIFAR) and, if it is there, `<root>/val`.

    Batches are `[indexes, [view, …], targets]` in training and `(images, targets)` in validation.
    With DALI only the training images go through it, on the GPU if there is one.

    Args:
        config: the run; `data.format` is image_folder or dali.

    Raises:
        UserError: no such folder, DALI is missing, or an augmentation that 1.0.2 does not have.
    """
    root = shared.data_root(config)
    shared.check_supported(config)
    pipelines = shared.augmentations(config)
    keywords = [_transform_keywords(config, pipeline) for pipeline in pipelines]
    num_crops = [pipeline.num_crops for pipeline in pipelines]
    val_loader = shared.val_loader(config, root, classification_dataloader.prepare_dataloaders)
    if config.data.format == "dali":
        loader = dali_data(config, root, keywords, num_crops)
        if val_loader is not None:
            loader.val_dataloader = lambda: val_loader
        return {"datamodule": loader}
    transform = pretrain_dataloader.prepare_n_crop_transform(
        [pretrain_dataloader.prepare_transform("custom", **k) for k in keywords], num_crops
    )
    pixels = config.data.dataset in shared.PIXEL_SETS
    name, folder = (config.data.dataset, ".") if pixels else ("custom", "train")
    train = pretrain_dataloader.prepare_datasets(name, transform, root, folder)
    train_loader = pretrain_dataloader.prepare_dataloader(
        train, batch_size=config.optimizer.batch_size, num_workers=config.data.num_workers
    )
    return {"train_dataloaders": train_loader, "val_dataloaders": val_loader}


def dali_data(
    config: RunConfig, root: Path, keywords: list[dict[str, Any]], num_crops: list[int]
) -> LightningDataModule:
    """A data module around solo-learn's DALI mixin, which was made to be part of the model."""
    try:
        from solo.methods import dali
    except ImportError as error:
        raise UserError(shared.DALI_MISSING) from error

    class DALIData(dali.PretrainABC, LightningDataModule):
        local_rank = property(lambda self: self.trainer.local_rank)
        global_rank = property(lambda self: self.trainer.global_rank)
        device = property(lambda self: self.trainer.strategy.root_device)

    data = DALIData()
    data.batch_size = config.optimizer.batch_size
    data.num_large_crops, data.num_small_crops = shared.crop_counts(shared.augmentations(config))
    data.extra_args = {
        "dali_device": shared.dali_device(config),
        "unique_augs": len(keywords),
        "transform_kwargs": keywords if len(keywords) > 1 else keywords[0],
        "num_crops_per_aug": num_crops,
        "num_workers": max(config.data.num_workers, 1),
        "data_dir": root,
        "train_dir": "train",
        "encode_indexes_into_labels": False,
        "dataset": "custom",
        "no_labels": False,
    }
    return data


def _transform_keywords(config: RunConfig, pipeline: DictConfig) -> dict[str, Any]:
    """A pipeline of solo-learn's YAML layout as the keywords of 1.0.2's transforms."""

    def get(key: str, default: float = 0.0) -> Any:
        return shared.select(pipeline, key, default)

    if not get("rrc.enabled", True) or get("equalization.prob"):
        raise UserError(
            "augmentation is not in solo-learn 1.0.2: rrc.enabled=False or equalization. "
            "It always crops, and never equalises. Change the augmentations of the recipe."
        )
    mean, std = shared.normalization(config)
    return {
        "brightness": get("color_jitter.brightness"),
        "contrast": get("color_jitter.contrast"),
        "saturation": get("color_jitter.saturation"),
        "hue": get("color_jitter.hue"),
        "color_jitter_prob": get("color_jitter.prob"),
        "gray_scale_prob": get("grayscale.prob"),
        "horizontal_flip_prob": get("horizontal_flip.prob"),
        "gaussian_prob": get("gaussian_blur.prob"),
        "solarization_prob": get("solarization.prob"),
        "min_scale": get("rrc.crop_min_scale", 0.08),
        "max_scale": get("rrc.crop_max_scale", 1.0),
        "crop_size": pipeline.crop_size,
        "mean": mean,
        "std": std,
    }
