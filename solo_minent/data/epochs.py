"""Order, random numbers and restart of an epoch, for every loader.

A view is a function of (seed, epoch, index of the image) alone. The number of workers, the number
of processes and a restart in the middle of a run change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from solo_minent.data.images import CorruptImageError, ImageSet
from solo_minent.distributed import rank, world_size
from solo_minent.errors import UserError


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed from integers, the same on every machine and Python."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """PyTorch's CPU generator on the seed of these numbers; afterwards it is as it was."""
    state = torch.get_rng_state()
    # default_generator.manual_seed: torch.manual_seed would reseed the accelerators as well.
    torch.default_generator.manual_seed(derive_seed(*numbers))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) without a process group."""
    return rank(), world_size()


class ReadableImages:
    """Images of a set, where one that cannot be decoded is replaced or named.

    Args:
        images: the set.
        skip: replace it by the next image that can be read, else raise.

    Attributes:
        corrupt: bool (N,) in shared memory, the images found corrupt so far by this process and
            its workers.
    """

    def __init__(self, images: ImageSet, skip: bool) -> None:
        self.images, self.skip = images, skip
        self.corrupt = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def read(self, index: int, read: Callable[[int], Any]) -> tuple[int, Any]:
        """`(i, read(i))` of the first i from `index` on that does not raise CorruptImageError.

        Raises:
            CorruptImageError: the image is corrupt and none may take its place.
            UserError: no image can be read.
        """
        for step in range(len(self.images)):
            at = (index + step) % len(self.images)
            if self.corrupt[at]:
                continue
            try:
                return at, read(at)
            except CorruptImageError:
                if not self.skip:
                    raise
                self.corrupt[at] = True
        raise UserError(
            f"no image can be decoded: {len(self.images)} images, such as "
            f"{self.images.name_of(index)}. They must be whole image files. Restore them."
        )


class PretrainDataset(Dataset):
    """(index, [view_1, …], target) of each image, with the random numbers of (seed, epoch, index).

    An image that cannot be read comes as the error itself, which names it, or replaced (see
    `ReadableImages`). `epoch` lives in shared memory, where persistent workers see it
    change.

    Args:
        images: the set.
        views_of: the views of an RGB PIL image in an epoch.
        seed: of the run.
        skip_corrupt: replace images that cannot be decoded.
    """

    def __init__(
        self,
        images: ImageSet,
        views_of: Callable[[Any, int], Any],
        seed: int,
        skip_corrupt: bool = False,
    ) -> None:
        self.images, self.views_of, self.seed = images, views_of, seed
        self.readable = ReadableImages(images, skip_corrupt)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[int, list[Tensor], int] | UserError:
        try:
            at, (image, target) = self.readable.read(index, self.images.__getitem__)
        except UserError as error:
            return error
        with seeded(self.seed, self.epoch, index):
            return at, self.views_of(image, self.epoch), target


class EpochSampler(DistributedSampler):
    """A seeded shuffle of each epoch, dealt out to the ranks.

    The shuffle is cut into global batches of W x B images, and rank r takes the r-th B of each:
    step t of W processes has, in the order of their ranks, the images of step t of one process with
    a W times larger batch. Images that fill no global batch are left out, and none is seen twice in
    an epoch.

    Rank and world size are read when an epoch starts, so the loader may be built before the process
    group. Being a DistributedSampler it is left alone by Lightning, which calls `set_epoch`.

    Args:
        dataset: what has a length.
        seed: of the run.
        batch_size: B, images of a rank and step.
    """

    def __init__(self, dataset: Dataset, seed: int, batch_size: int) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed, drop_last=True)
        self.batch_size = batch_size
        self.start = 0  # images of this rank to pass over, for a restart within an epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        rank, world = rank_and_world()
        global_batches = order[: world * len(self)].view(-1, world, self.batch_size)
        yield from global_batches[:, rank].flatten()[self.start :].tolist()

    def __len__(self) -> int:
        global_batch = rank_and_world()[1] * self.batch_size
        return len(self.dataset) // global_batch * self.batch_size


class Resumable:
    """The place of a loader in its run: an epoch and the batches of it that were handed out.

    The loader has a `sampler` that knows the epoch, and a length. As with DistributedSampler,
    `set_epoch` comes before each pass; without it a pass repeats.
    """

    sampler: Any
    _done = 0  # batches of the current epoch handed out
    _resume: tuple[int, int] | None = None  # (epoch, batches done) from a checkpoint

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls the sampler's own `set_epoch`; plain loops call this one."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were handed out, per process."""
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass over that epoch starts after those batches; a whole epoch starts anew."""
        batches = state["batches"] % len(self)
        self._resume = (state["epoch"], batches) if batches else None
        self._done = batches

    def _start(self) -> int:
        """Batches that the pass now starting leaves out: those done before a restart."""
        resume, self._resume = self._resume, None
        self._done = resume[1] if resume is not None and resume[0] == self.sampler.epoch else 0
        return self._done


class EpochLoader(Resumable, DataLoader):
    """A DataLoader over a PretrainDataset: it follows its sampler's epoch and resumes within it."""

    @property
    def readable(self) -> ReadableImages:
        return self.dataset.readable

    # A generator: its body runs at the first batch. Lightning makes the iterator of a resumed run
    # before it tells the sampler the epoch, and workers would fetch epoch 0 ahead.
    def __iter__(self) -> Iterator[list]:
        self.dataset.set_epoch(self.sampler.epoch)
        skip = self._start()
        own = isinstance(self.sampler, EpochSampler)
        if own:
            self.sampler.start = skip * self.batch_size
        batches = super().__iter__()
        for batch in batches if own else itertools.islice(batches, skip, None):
            if isinstance(batch, UserError):
                raise batch
            self._done += 1
            yield batch


def collate(samples: list) -> Any:
    """A batch, or the first error of its samples: one raised in a worker loses its message."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else default_collate(samples)
