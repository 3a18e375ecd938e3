"""solo-learn 1.0.6's own loaders for a folder of images, and for CIFAR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from solo.data import classification_dataloader, pretrain_dataloader

from solo_minent.errors import UserError
from solo_minent.host import shared

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

_SECTIONS = ("color_jitter", "grayscale", "gaussian_blur", "solarization", "equalization")


def fit_data(config: RunConfig) -> dict[str, Any]:
    """Keywords for `Trainer.fit` from `<root>/train` (or CIFAR) and, if it is there, `<root>/val`.

    Batches are `[indexes, [view, …], targets]` in training and `(images, targets)` in validation.
    With DALI only the training images go through it, on the GPU if there is one.

    Args:
        config: the run; `data.format` is image_folder or dali.

    Raises:
        UserError: no such folder, or DALI is missing.
    """
    root = shared.data_root(config)
    shared.check_supported(config)
    pipelines = [_complete(config, pipeline) for pipeline in shared.augmentations(config)]
    val_loader = shared.val_loader(config, root, classification_dataloader.prepare_dataloaders)
    if config.data.format == "dali":
        data = _dali_data(config, root / "train", pipelines)
        if val_loader is not None:
            data.val_dataloader = lambda: val_loader
        return {"datamodule": data}
    transform = _n_crops(pipelines, pretrain_dataloader.build_transform_pipeline)
    pixels = config.data.dataset in shared.PIXEL_SETS
    name, folder = (config.data.dataset, root) if pixels else ("custom", root / "train")
    train = pretrain_dataloader.prepare_datasets(name, transform, folder, download=False)
    train_loader = pretrain_dataloader.prepare_dataloader(
        train, batch_size=config.optimizer.batch_size, num_workers=config.data.num_workers
    )
    return {"train_dataloaders": train_loader, "val_dataloaders": val_loader}


def _dali_data(config: RunConfig, train_path: Any, pipelines: list[DictConfig]) -> Any:
    try:
        from solo.data import dali_dataloader
    except ImportError as error:
        raise UserError(shared.DALI_MISSING) from error

    device = shared.dali_device(config)
    num_large, num_small = shared.crop_counts(pipelines)
    return dali_dataloader.PretrainDALIDataModule(
        dataset="custom",
        train_data_path=train_path,
        transforms=_n_crops(
            pipelines,
            lambda name, cfg: dali_dataloader.build_transform_pipeline_dali(name, cfg, device),
        ),
        num_large_crops=num_large,
        num_small_crops=num_small,
        batch_size=config.optimizer.batch_size,
        num_workers=max(config.data.num_workers, 1),
        dali_device=device,
    )


def _n_crops(pipelines: list[DictConfig], build: Any) -> Any:
    return pretrain_dataloader.prepare_n_crop_transform(
        [build("custom", pipeline) for pipeline in pipelines],
        [pipeline.num_crops for pipeline in pipelines],
    )


def _complete(config: RunConfig, pipeline: DictConfig) -> DictConfig:
    """The pipeline with the run's normalisation, and with what it leaves out switched off."""
    mean, std = shared.normalization(config)
    off = {section: {"prob": 0.0} for section in (*_SECTIONS, "horizontal_flip")}
    rrc = {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0}
    colors = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    defaults = {**off, "rrc": rrc, "color_jitter": {"prob": 0.0, **colors}}
    return OmegaConf.merge(defaults, pipeline, {"mean": mean, "std": std})
