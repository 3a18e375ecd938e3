"""Loaders: solo-learn's batch `[indexes, [view_1, …, view_n], targets]`, whatever the format.

Every pretraining loader has `set_epoch`, `sampler`, `state_dict`, `load_state_dict` and `readable`
(the images, and which of them turned out to be corrupt).
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from solo_minent.data.augmentations import views_at
from solo_minent.data.datasets import load_split
from solo_minent.data.epochs import (
    EpochLoader,
    EpochSampler,
    PretrainDataset,
    collate,
    rank_and_world,
)
from solo_minent.data.images import CorruptImageError, ImageSet
from solo_minent.data.transforms import eval_transform, multi_view, normalization
from solo_minent.data.workers import calm, calm_forkserver
from solo_minent.errors import UserError
from solo_minent.machine import cores_of_each

if TYPE_CHECKING:
    from PIL.Image import Image

    from solo_minent.schema import RunConfig

# Subsets are part of the data: runs with different seeds see the same images.
SUBSET_SEED = 0


class EpochViews:
    """(RGB PIL image, epoch) -> its views, by torchvision."""

    def __init__(self, config: RunConfig) -> None:
        constants = normalization(config.data)
        self.late_epoch = config.late_epoch
        self.early = multi_view(views_at(config, 0), *constants)
        if self.late_epoch is not None:
            self.late = multi_view(views_at(config, self.late_epoch), *constants)

    def __call__(self, image: Image, epoch: int) -> list[Tensor]:
        late = self.late_epoch is not None and epoch >= self.late_epoch
        return (self.late if late else self.early)(image)


def chosen_images(config: RunConfig) -> ImageSet:
    """The images of a run, its subset or list of them."""
    data = config.data
    return load_split(
        data.dataset,
        data.root,
        "pretrain",
        data.train_images,
        SUBSET_SEED,
        file_list=data.file_list,
        format=data.format,
    )


def pretrain_images(config: RunConfig) -> ImageSet:
    """The images to train on, with unlabelled ones (target -1) where the data set has them.

    Raises:
        UserError: as `load_split`, and where one step of all processes needs more images than
            there are.
    """
    images, batch_size = chosen_images(config), config.optimizer.batch_size
    processes = config.devices * config.num_nodes
    if batch_size * processes > len(images):
        times = f" x {processes} processes" if processes > 1 else ""
        raise UserError(
            f"batch_size {batch_size}{times} is larger than the training set: {len(images)} images "
            f"of {config.data.dataset}. At most {len(images) // processes}. "
            "Lower optimizer.batch_size."
        )
    return images


def pretrain_loader(config: RunConfig, images: ImageSet | None = None) -> Iterable:
    """Batches `[indexes (B,), [views (B, 3, S, S), …], targets (B,)]` of the training images.

    Large crops come first. The last, smaller batch of an epoch is dropped. Call
    `loader.set_epoch(epoch)` before each epoch (Lightning calls it on the sampler).

    Args:
        config: of the run.
        images: `pretrain_images(config)`, if they are at hand.

    Raises:
        UserError: the data is missing, wrongly laid out, too large for the device or too small for
            a batch, or an augmentation that the format cannot do.
    """
    images = pretrain_images(config) if images is None else images
    if config.data.format == "dali":
        from solo_minent.data.dali import DaliLoader

        return DaliLoader(images, config)
    if config.data.format == "device":
        from solo_minent.data.device import DeviceLoader

        return DeviceLoader(images, config)
    skip = config.data.on_corrupt == "skip"
    dataset = PretrainDataset(images, EpochViews(config), config.seed, skip)
    options = _worker_options(config)
    options["persistent_workers"] = options["num_workers"] > 0
    return EpochLoader(
        dataset,
        batch_size=config.optimizer.batch_size,
        sampler=EpochSampler(dataset, config.seed, config.optimizer.batch_size),
        drop_last=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(config.seed),
        **options,
    )


class TransformedImages(Dataset):
    """(float32 (3, S, S), int label) of each image, or the error that it raised.

    Attributes:
        skip_corrupt: images that cannot be decoded are left out, else they end the pass.
        corrupt: names of those left out so far.
    """

    def __init__(
        self, images: ImageSet, transform: Callable[[Any], Tensor], skip_corrupt: bool
    ) -> None:
        self.images, self.transform, self.skip_corrupt = images, transform, skip_corrupt
        self.corrupt: set[str] = set()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | UserError:
        try:
            image, target = self.images[index]
        except UserError as error:
            return error
        return self.transform(image), target


class EvalLoader(DataLoader):
    """A DataLoader over TransformedImages with `collate_readable`."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        left_out = self.dataset.corrupt
        known = len(left_out)
        try:
            for batch, errors in super().__iter__():
                for error in errors:
                    if not (self.dataset.skip_corrupt and isinstance(error, CorruptImageError)):
                        raise error
                left_out.update(error.name for error in errors)
                if batch is not None:
                    yield batch
        finally:  # Lightning stops asking after the last batch
            if len(left_out) > known:
                some = ", ".join(sorted(left_out)[:3])
                print(f"left out {len(left_out)} corrupt images, such as {some}", file=sys.stderr)


def collate_readable(samples: list) -> tuple[list[Tensor] | None, list[UserError]]:
    """(batch of the samples that could be read, or None; what the others raised)."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    good = [sample for sample in samples if not isinstance(sample, UserError)]
    return (default_collate(good) if good else None), errors


def labelled_images(config: RunConfig, split: str) -> ImageSet:
    """The images with labels of a split that evaluations use.

    Args:
        config: of the run.
        split: `train` (its `data.train_images` subset and `data.file_list`) or `test` (its
            `data.val_images` subset).

    Raises:
        UserError: the data is missing, wrongly laid out or has no labels.
    """
    data = config.data
    if split == "train" and (data.train_images or data.file_list):
        images = chosen_images(config)  # the run's own, not as many others
    else:
        subset = data.val_images if split == "test" else None
        images = load_split(data.dataset, data.root, split, subset, SUBSET_SEED, format=data.format)
    if not images.classes:
        raise UserError(
            f"data set has no labels: {data.root}. An evaluation needs them. Put the images into "
            "one folder a class, train/<class>/<image> and val/<class>/<image>."
        )
    if (images.targets < 0).any():
        images = images.select(np.flatnonzero(images.targets >= 0))
    return images


def eval_loader(config: RunConfig, split: str, batch_size: int = 256) -> EvalLoader:
    """Batches `[images (B, 3, S, S), targets (B,)]` of `labelled_images` under the test transform.

    In order, to the last image.

    Args:
        config: of the run.
        split: `train` or `test`.
        batch_size: images of a batch.

    Raises:
        UserError: as `labelled_images`.
    """
    data = config.data
    transform = eval_transform(data.dataset, data.image_size, *normalization(data))
    return image_loader(config, labelled_images(config, split), transform, batch_size)


class ShareBatches(Sampler[list[int]]):
    """Batches of consecutive images, of which each process has its share: every image once.

    All processes have equally many batches, as DistributedDataParallel needs, whose sizes differ by
    one at most on a process, and so do the shares. With fewer images than processes each of them
    has them all. Rank and world size are read when a pass starts.

    Args:
        images: their number.
        batch_size: at most; one more where a share would otherwise be a batch short.
    """

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        _, world = self._share()
        return min(math.ceil(self.images / (world * self.batch_size)), self.images // world)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self._share()
        indexes = np.arange(self.images)
        share = np.array_split(indexes, world)[rank]
        yield from (batch.tolist() for batch in np.array_split(share, len(self)))

    def _share(self) -> tuple[int, int]:
        rank, world = rank_and_world()
        return (rank, world) if self.images >= world else (0, 1)


def validation_loader(config: RunConfig, test: EvalLoader) -> EvalLoader:
    """The batches of `test`, an `eval_loader`, shared out among the processes of a run."""
    images = test.dataset.images
    batches = ShareBatches(len(images), config.evaluation.batch_size)
    return image_loader(config, images, test.dataset.transform, 1, batch_sampler=batches)


def image_loader(
    config: RunConfig,
    images: ImageSet,
    transform: Callable[[Image], Tensor],
    batch_size: int,
    **options: Any,
) -> EvalLoader:
    """Batches `[images (B, 3, S, S), targets (B,)]` of any images under any transform.

    Args:
        config: its workers, seed and `data.on_corrupt` are used.
        images: what to read.
        transform: RGB PIL image -> float32 (3, S, S).
        batch_size: images of a batch.
        options: further arguments of `torch.utils.data.DataLoader`, such as shuffle or sampler.
    """
    return EvalLoader(
        TransformedImages(images, transform, config.data.on_corrupt == "skip"),
        batch_size=batch_size,
        collate_fn=collate_readable,
        generator=torch.Generator().manual_seed(config.seed),
        **(_worker_options(config) | options),
    )


def num_workers(config: RunConfig) -> int:
    """The workers of this process; those of all processes of a node never outnumber its cores."""
    return min(config.data.num_workers, cores_of_each(config.devices))


def _worker_options(config: RunConfig) -> dict[str, Any]:
    """How the worker processes of a PyTorch loader start.

    A process that has run DALI must not be forked: a lock that one of DALI's threads holds at that
    moment is held in the child for ever.
    """
    workers = num_workers(config)
    pinned = torch.cuda.is_available() and config.accelerator != "cpu"
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pinned}
    options["worker_init_fn"] = calm
    dali = config.data.format == "dali" or "solo_minent.data.dali" in sys.modules
    if workers and dali and "forkserver" in multiprocessing.get_all_start_methods():
        options |= {"multiprocessing_context": calm_forkserver(), "persistent_workers": True}
    return options
