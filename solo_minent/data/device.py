"""The whole training set as pixels on the accelerator, views made there: no worker processes.

A batch is a function of (seed, epoch, step, rank) alone, restarts included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from solo_minent.console import progress_bar
from solo_minent.data.augmentations import views_at
from solo_minent.data.batched import BatchedViews
from solo_minent.data.epochs import (
    EpochSampler,
    ReadableImages,
    Resumable,
    derive_seed,
    rank_and_world,
)
from solo_minent.data.images import ArrayImages, ImageSet
from solo_minent.data.transforms import normalization
from solo_minent.errors import UserError
from solo_minent.machine import cores

if TYPE_CHECKING:
    from PIL.Image import Image

    from solo_minent.schema import RunConfig

GIB = 2**30


class DeviceLoader(Resumable):
    """Batches `[indexes (B,), [views (B, 3, S, S), …], targets (B,)]` on the device.

    The device is the process's current GPU, or the CPU where the run has none. The pixels move
    there when the first epoch starts: by then Lightning has given each process its GPU.

    Args:
        images: the set; images that are no array are decoded here, once.
        config: of the run.

    Raises:
        UserError: the set does not fit into half of what is free, its images differ in size, or
            one cannot be decoded and `data.on_corrupt` does not skip it.
    """

    def __init__(self, images: ImageSet, config: RunConfig) -> None:
        self.config = config
        self.readable = ReadableImages(images, config.data.on_corrupt == "skip")
        _check_fits(self.readable, config)
        self.pixels, indexes = load_pixels(self.readable)
        self.indexes = torch.from_numpy(indexes)
        self.targets = torch.from_numpy(images.targets[indexes])
        self.batch_size = config.optimizer.batch_size
        self.sampler = EpochSampler(images, config.seed, self.batch_size)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    # A generator, as in EpochLoader: Lightning makes the iterator before it sets the epoch.
    def __iter__(self) -> Iterator[list]:
        epoch = self.sampler.epoch
        self.sampler.start = self._start() * self.batch_size
        self._move(_device(self.config))
        views_of = BatchedViews(views_at(self.config, epoch), *normalization(self.config.data))
        order = torch.tensor(list(self.sampler))
        for chosen in order.split(self.batch_size)[: len(self) - self._done]:
            batch = self._batch(views_of, chosen, epoch)
            self._done += 1
            yield batch

    @torch.no_grad()
    def _batch(self, views_of: BatchedViews, chosen: Tensor, epoch: int) -> list:
        seed = derive_seed(self.config.seed, epoch, self._done, rank_and_world()[0])
        if self.pixels.is_cuda:
            chosen = chosen.pin_memory().to(self.pixels.device, non_blocking=True)
        views = views_of(self.pixels[chosen], torch.Generator().manual_seed(seed))
        return [self.indexes[chosen], views, self.targets[chosen]]

    def _move(self, device: torch.device) -> None:
        self.pixels, self.indexes, self.targets = (
            tensor.to(device) for tensor in (self.pixels, self.indexes, self.targets)
        )


def load_pixels(readable: ReadableImages) -> tuple[Tensor, np.ndarray]:
    """All images: uint8 (N, 3, H, W), and which image each one is, int64 (N,).

    A corrupt image is replaced as `readable` does it.

    Raises:
        UserError: two images differ in size, or one is corrupt and may not be replaced.
    """
    images = readable.images
    if isinstance(images, ArrayImages):
        pixels = torch.from_numpy(images.images).permute(0, 3, 1, 2).contiguous()
        return pixels, np.arange(len(images))
    first, image = _first(readable)
    pixels = np.empty((len(images), 3, image.height, image.width), np.uint8)
    indexes = np.empty(len(images), np.int64)

    def fill(index: int) -> None:
        at, (decoded, _) = readable.read(index, images.__getitem__)
        if decoded.size != image.size:
            raise UserError(
                "images differ in size: "
                f"{images.name_of(first)} is {image.width} x {image.height}, {images.name_of(at)} "
                f"is {decoded.width} x {decoded.height}. data.format=device needs one size. "
                "Set data.format=image_folder or data.format=dali."
            )
        pixels[index] = np.asarray(decoded).transpose(2, 0, 1)
        indexes[index] = at

    # Decoders let go of the interpreter: threads are enough.
    with progress_bar() as bar, ThreadPoolExecutor(cores()) as pool:
        for _ in bar.track(pool.map(fill, range(len(images))), len(images), description="decoding"):
            pass
    return torch.from_numpy(pixels), indexes


def _first(readable: ReadableImages) -> tuple[int, Image]:
    at, (image, _) = readable.read(0, readable.images.__getitem__)
    return at, image


def _check_fits(readable: ReadableImages, config: RunConfig) -> None:
    """The first image gives the size of all."""
    count, (_, image) = len(readable.images), _first(readable)
    size = count * 3 * image.height * image.width
    places = {"RAM": _free_ram() / config.devices}  # where each process decodes a set of its own
    if _device(config).type == "cuda":
        # Before Lightning starts, every process's current device is the first.
        device = int(os.environ.get("LOCAL_RANK", 0))
        places["GPU memory"] = torch.cuda.mem_get_info(device)[0]
    for place, free in places.items():
        if size > free / 2:
            raise UserError(
                f"training set is too large for data.format=device: {count} images of "
                f"{image.width} x {image.height} need {size / GIB:.3g} GiB of {place}. At most "
                f"half of the {free / GIB:.3g} GiB that are free, the rest is the model's. Set "
                "data.format=image_folder, data.format=dali or a smaller data.train_images."
            )


def _free_ram() -> int:
    """Bytes that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def _device(config: RunConfig) -> torch.device:
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
