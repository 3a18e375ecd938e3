"""Loaders: solo-learn's batch `[indexes, [view_1, …, view_n], targets]`, the same on every restart.

A view is a function of (seed, epoch, index of the image) alone. The number of workers, the number
of processes and a restart in the middle of a run change nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from solo_minent.data.datasets import ImageSet, load_split
from solo_minent.data.transforms import (
    NORMALIZATION,
    build_multi_view,
    crop_counts,
    eval_transform,
)
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.config import DataConfig, RunConfig

__all__ = ["crop_counts", "eval_loader", "pretrain_loader"]

# Subsets are part of the data: runs with different seeds see the same images.
_SUBSET_SEED = 0


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed from integers, the same on every machine and Python."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


class PretrainDataset(Dataset):
    """(index, [view_1, …], target) of each image, with the random numbers of (seed, epoch, index).

    PyTorch's global generator is put back after each image: drawing views in the main process
    moves nothing else. `epoch` lives in shared memory, where persistent workers see it change.
    """

    def __init__(
        self, images: ImageSet, transform: Callable[[Any], list[Tensor]], seed: int
    ) -> None:
        self.images, self.transform, self.seed = images, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[int, list[Tensor], int]:
        image, target = self.images[index]
        state = torch.get_rng_state()
        # default_generator.manual_seed: torch.manual_seed would reseed the accelerators as well.
        seed = derive_seed(self.seed, self._epoch.item(), index)
        torch.default_generator.manual_seed(seed)
        try:
            return index, self.transform(image), target
        finally:
            torch.set_rng_state(state)


class EpochSampler(DistributedSampler):
    """A seeded shuffle of each epoch, dealt out to the ranks.

    Rank and world size are read when an epoch starts, so the loader may be built before the process
    group. Being a DistributedSampler it is left alone by Lightning, which calls `set_epoch`. Each
    rank gets floor(N / world) images and the tail of the shuffle is dropped: no image is seen twice
    in an epoch. Step t of W processes sees the images of step t of one process with a W times
    larger batch.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed, drop_last=True)
        self.start = 0  # images of this rank to pass over, for a restart within an epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        rank, world = _rank_and_world()
        mine = order[rank::world][: len(self)]
        yield from mine[self.start :].tolist()

    def __len__(self) -> int:
        return len(self.dataset) // _rank_and_world()[1]


class EpochLoader(DataLoader):
    """A DataLoader over a PretrainDataset that follows its sampler's epoch and resumes within it.

    As with DistributedSampler, `set_epoch` comes before each pass; without it a pass repeats.
    """

    _done = 0  # batches of the current epoch handed out
    _resume: tuple[int, int] | None = None  # (epoch, batches done) from a checkpoint

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls the sampler's own `set_epoch`; plain loops call this one."""
        self.sampler.set_epoch(epoch)

    # A generator: its body runs at the first batch. Lightning makes the iterator of a resumed run
    # before it tells the sampler the epoch, and workers would fetch epoch 0 ahead.
    def __iter__(self) -> Iterator[list]:
        epoch = self.sampler.epoch
        self.dataset.set_epoch(epoch)
        resume, self._resume = self._resume, None
        skip = resume[1] if resume is not None and resume[0] == epoch else 0
        self._done = skip
        own = isinstance(self.sampler, EpochSampler)
        if own:
            self.sampler.start = skip * self.batch_size
        batches = super().__iter__()
        for batch in batches if own else itertools.islice(batches, skip, None):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were handed out, per process."""
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass over that epoch starts after those batches; a whole epoch starts anew."""
        batches = state["batches"] % len(self)
        self._resume = (state["epoch"], batches) if batches else None
        self._done = batches


class TransformedImages(Dataset):
    """(float32 (3, S, S), int label) of each image."""

    def __init__(self, images: ImageSet, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.images[index]
        return self.transform(image), target


def pretrain_loader(config: RunConfig) -> DataLoader:
    """Batches `[indexes (B,), [views (B, 3, S, S), …], targets (B,)]` of the training split.

    Large crops come first (`crop_counts`). The last, smaller batch of an epoch is dropped. Call
    `loader.set_epoch(epoch)` before each epoch (Lightning calls it on the sampler).

    Raises UserError on unknown names, keys and values out of range, and where one step of all
    processes needs more images than there are.
    """
    data, batch_size = config.data, config.optimizer.batch_size
    if data.format != "image_folder":
        raise UserError(
            f"this loader cannot read the format: {data.format}. It reads image_folder. "
            "Set data.format=image_folder."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(
            f"batch_size must be a positive number: {batch_size!r}. Set optimizer.batch_size."
        )
    workers = _num_workers(config)
    transform = build_multi_view(config.augmentations, data.image_size, *_normalization(data))
    images = load_split(data.dataset, data.root, "train", data.train_images, _SUBSET_SEED)
    processes = config.devices * config.num_nodes
    if batch_size * processes > len(images):
        times = f" x {processes} processes" if processes > 1 else ""
        raise UserError(
            f"batch_size {batch_size}{times} is larger than the training set: {len(images)} images "
            f"of {data.dataset}. At most {len(images) // processes}. Lower optimizer.batch_size."
        )
    dataset = PretrainDataset(images, transform, config.seed)
    return EpochLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(dataset, config.seed),
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(config.seed),
    )


def eval_loader(config: RunConfig, split: str, batch_size: int = 256) -> DataLoader:
    """Batches `[images (B, 3, S, S), targets (B,)]` of a split, in order, with the last batch.

    split: `train` (its `data.train_images` subset) or `test` (its `data.val_images` subset).
    """
    data = config.data
    subset = data.train_images if split == "train" else data.val_images
    images = load_split(data.dataset, data.root, split, subset, _SUBSET_SEED)
    transform = eval_transform(data.dataset, data.image_size, *_normalization(data))
    return DataLoader(
        TransformedImages(images, transform),
        batch_size=batch_size,
        num_workers=_num_workers(config),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(config.seed),
    )


def _normalization(data: DataConfig) -> tuple[Any, Any]:
    mean, std = NORMALIZATION.get(data.dataset, NORMALIZATION["custom"])
    return (
        data.mean if data.mean is not None else mean,
        data.std if data.std is not None else std,
    )


def _num_workers(config: RunConfig) -> int:
    """The workers of this process; those of all processes of a node never outnumber its cores."""
    workers = config.data.num_workers
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise UserError(
            f"num_workers must be 0 or more: {workers!r}. 0 loads in the main process. "
            "Set data.num_workers."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(workers, max(1, (cores or 1) // max(1, config.devices)))


def _rank_and_world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
