"""The DALI loader: the views of the PIL loader, made by one DALI graph on the CPU or a GPU.

Reading, order and random numbers are PyTorch's and the same as for PIL (`data.epochs`,
`data.draws`): a view is a function of (seed, epoch, index). DALI gets encoded images and numbers;
it decodes each image once and makes all of its views.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from solo_minent.data.augmentations import views_at
from solo_minent.data.dali_graph import build_pipeline
from solo_minent.data.dali_views import ViewPlan
from solo_minent.data.epochs import EpochSampler, ReadableImages, Resumable, seeded
from solo_minent.data.images import ImageSet, open_image
from solo_minent.data.transforms import normalization
from solo_minent.data.workers import calm
from solo_minent.errors import UserError
from solo_minent.machine import cores_of_each

if TYPE_CHECKING:
    from PIL.Image import Image

    from solo_minent.schema import RunConfig

_DEPTH = 3  # batches under way: DALI works on two while the model trains on another


@dataclass
class Encoded:
    """A batch on its way to DALI.

    requested: int64 (B,) of the sampler; indexes: int64 (B,) of the images that came; targets:
    int64 (B,); data: uint8, all files in a row; lengths: int64 (B,); numbers: float64 (B, K) for
    each view.
    """

    requested: Tensor
    indexes: Tensor
    targets: Tensor
    data: Tensor
    lengths: Tensor
    numbers: list[Tensor]

    def files(self) -> list[np.ndarray]:
        """uint8 (length,) of each image."""
        return np.split(self.data.numpy(), np.cumsum(self.lengths.numpy())[:-1])


class EncodedImages(Dataset):
    """(requested, index, target, file as uint8 (length,), numbers of each view) of each image.

    A file that DALI does not decode as PIL does is decoded here, by PIL, and comes as a PPM: one
    that is neither RGB nor grey, of another format than JPEG or PNG, without its end mark, or in
    `foreign`. What cannot be read comes as the error itself or replaced, as in `PretrainDataset`.

    Attributes:
        foreign: bool (N,) in shared memory, images that DALI refused.
    """

    def __init__(self, images: ImageSet, config: RunConfig) -> None:
        self.images, self.seed = images, config.seed
        self.readable = ReadableImages(images, config.data.on_corrupt == "skip")
        self.foreign = torch.zeros(len(images), dtype=torch.bool).share_memory_()
        self.late_epoch = config.late_epoch
        self._early = _plans(config, 0)
        self._late = self._early if config.late_epoch is None else _plans(config, config.late_epoch)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def plans(self, epoch: int) -> list[ViewPlan]:
        """One for each view of an epoch."""
        late = self.late_epoch is not None and epoch >= self.late_epoch
        return self._late if late else self._early

    def __getitem__(self, index: int) -> tuple | UserError:
        try:
            at, (file, width, height) = self.readable.read(index, self._file)
        except UserError as error:
            return error
        epoch = int(self._epoch)
        with seeded(self.seed, epoch, index):
            numbers = [plan.draw(height, width) for plan in self.plans(epoch)]
        return index, at, int(self.images.targets[at]), file, numbers

    def _file(self, index: int) -> tuple[np.ndarray, int, int]:
        """The file of an image, its width and its height."""
        data = self.images.encoded(index)
        size = None if self.foreign[index] else _plain_size(data)
        if size is None:
            image, _ = self.images[index]
            data, size = _ppm(image), image.size
        return np.frombuffer(data, dtype=np.uint8), *size


def _plans(config: RunConfig, epoch: int) -> list[ViewPlan]:
    return [ViewPlan(view) for view in views_at(config, epoch) for _ in range(view.count)]


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole RGB or grey JPEG or PNG, from its ends; None for all others."""
    # A JPEG's end mark stands at its end and nowhere in its pixels; some writers add padding.
    if data[:2] == b"\xff\xd8":
        whole = b"\xff\xd9" in data[-32:]
    else:
        whole = data[:4] == b"\x89PNG" and b"IEND" in data[-32:]
    if not whole:
        return None
    try:
        with open_image(data) as image:
            plain = image.mode in ("RGB", "L") and image.format in ("JPEG", "PNG")
            if image.format == "JPEG" and "progressive" not in image.info:
                plain = plain and _one_whole_scan(data)
            return image.size if plain else None
    except Exception:  # whatever it is, decoding it in full says it again
        return None


def _one_whole_scan(data: bytes) -> bool:
    """Whether nothing but the end mark follows the first scan of a sequential JPEG.

    DALI stops reading when it has its lines, PIL asks libjpeg to read on: where a flipped bit made
    a mark in the middle of the pixels, DALI gives a grey rest and PIL refuses the file.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    rest = np.frombuffer(data, np.uint8)[at + 2 :]
    marks = rest[1:][rest[:-1] == 0xFF]
    marks = marks[(marks != 0x00) & (marks != 0xFF) & (marks >> 3 != 0xD0 >> 3)]  # of restarts
    return len(marks) > 0 and marks[0] == 0xD9


def _ppm(image: Image) -> bytes:
    return f"P6\n{image.width} {image.height}\n255\n".encode() + image.tobytes()


def _collate(samples: list) -> Encoded | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    requested, indexes, targets, files, numbers = zip(*samples, strict=True)
    return Encoded(
        torch.tensor(requested),
        torch.tensor(indexes),
        torch.tensor(targets),
        torch.from_numpy(np.concatenate(files)),
        torch.tensor([len(file) for file in files]),
        [torch.from_numpy(np.stack(view)) for view in zip(*numbers, strict=True)],
    )


class DaliLoader(Resumable):
    """Batches `[indexes (B,), [views float32 (B, 3, S, S), …], targets (B,)]`, made by DALI.

    The views lie on the GPU of this process, or on the CPU. They are those of the PIL loader with
    the same seed up to a few grey levels (see `data.dali_views`). An epoch, its shares of the
    processes and a restart within it are as with `EpochLoader`.

    Args:
        images: a set of image files.
        config: of the run: `dali.device` auto (a GPU if there is one), cpu or gpu;
            `data.num_workers` threads of DALI on this process.

    Raises:
        UserError: DALI or the GPU is missing, the set is kept as pixels, or an augmentation is
            beyond the graph. While it runs: an image is corrupt (`data.on_corrupt: error`).
    """

    def __init__(self, images: ImageSet, config: RunConfig) -> None:
        if config.dali.pipeline != "own":
            raise UserError(
                f"this loader is not solo-learn's: dali.pipeline={config.dali.pipeline}. It makes "
                "the views by its own graph. Set dali.pipeline=own."
            )
        if not images.has_files:
            raise UserError(
                f"the DALI loader reads image files: data.dataset={config.data.dataset} is kept as "
                "pixels. Folders of JPEG or PNG files are read. Set data.format=device."
            )
        self.device = _device(config.dali.device)
        _check_installed()
        self.images, self.batch_size, self.seed = images, config.optimizer.batch_size, config.seed
        self.constants = normalization(config.data)
        self.pinned = torch.cuda.is_available() and config.accelerator != "cpu"
        self.dataset = EncodedImages(images, config)
        self.sampler = EpochSampler(self.dataset, config.seed, self.batch_size)
        self.threads, workers = _threads(config, self.device)
        self.reader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(config.seed),
            worker_init_fn=calm,
        )
        self._pipeline: Any = None
        self._plans: list[ViewPlan] = []
        self._waiting: Iterator[Encoded | UserError] = iter(())  # for DALI
        self._flying: deque[Encoded] = deque()  # with DALI
        self._error: UserError | None = None  # of the batch after those

    @property
    def readable(self) -> ReadableImages:
        return self.dataset.readable

    def __len__(self) -> int:
        return len(self.reader)

    # A generator, for the reason that EpochLoader.__iter__ gives.
    def __iter__(self) -> Iterator[list]:
        epoch = self.sampler.epoch
        self.dataset.set_epoch(epoch)
        self.sampler.start = self._start() * self.batch_size
        if self._flying:  # of a pass that was left early
            self._pipeline = None
        self._waiting, self._flying, self._error = iter(self.reader), deque(), None
        self._prepare(self.dataset.plans(epoch))
        while (views := self._next()) is not None:
            batch = self._flying.popleft()
            self._done += 1
            yield [batch.indexes, views, batch.targets]
        if self._error is not None:
            raise self._error

    def _prepare(self, plans: list[ViewPlan]) -> None:
        """The pipeline for these views; ranges and probabilities are not part of it."""
        same = [plan.stages for plan in plans] == [plan.stages for plan in self._plans]
        self._plans = plans
        if self._pipeline is not None and same:
            self._pipeline.reset()
            return
        options = {
            "batch_size": self.batch_size,
            "num_threads": self.threads,
            "device_id": torch.cuda.current_device() if self.device == "gpu" else None,
            "prefetch_queue_depth": _DEPTH,
        }
        self._pipeline = build_pipeline(plans, *self.constants, self._inputs, options)

    def _inputs(self) -> list:
        """The next batch for DALI, as `build_pipeline` wants it."""
        batch = next(self._waiting, None)
        if isinstance(batch, UserError):  # the batches before it come first
            self._error, batch = batch, None
            self._waiting = iter(())
        if batch is None:
            raise StopIteration
        self._flying.append(batch)
        inputs: list = [batch.files()]
        for plan, values in zip(self._plans, batch.numbers, strict=True):
            start = 0
            for number in plan.numbers:
                part = values[:, start : start + number.width].numpy().astype(number.dtype)
                inputs.append(part if number.width > 1 else part[:, 0])
                start += number.width
        return inputs

    def _next(self) -> list[Tensor] | None:
        """The views of the first batch under way, None after the last."""
        while True:
            try:
                self._pipeline.schedule_run()
                outputs = self._pipeline.share_outputs()
            except StopIteration:
                return None
            except RuntimeError as error:
                self._repair(error)
                continue
            views = [_tensor(output, self.device, self.pinned) for output in outputs]
            self._pipeline.release_outputs()
            return views

    def _repair(self, error: RuntimeError) -> None:
        """Lets PIL decode the images under way that DALI refuses, and starts their batches again.

        Raises:
            UserError: PIL cannot decode one either.
            RuntimeError: the error given, if no image is refused when it is alone.
        """
        flying, self._flying = self._flying, deque()
        self._pipeline = None
        refused = False
        for batch in flying:
            samples = None
            for position, file in enumerate(batch.files()):
                if _decodes(file):
                    continue
                refused = True
                self.dataset.foreign[batch.indexes[position]] = True
                sample = self.dataset[int(batch.requested[position])]
                if isinstance(sample, UserError):
                    raise sample from error
                samples = samples or self._samples(batch)
                samples[position] = sample
            if samples is not None:
                vars(batch).update(vars(_collate(samples)))
        _probe.cache_clear()
        if not refused:
            raise error
        self._waiting = itertools.chain(flying, self._waiting)
        self._prepare(self._plans)

    @staticmethod
    def _samples(batch: Encoded) -> list[tuple]:
        """What `_collate` made the batch from."""
        numbers = [[row.numpy() for row in rows] for rows in zip(*batch.numbers, strict=True)]
        scalars = (batch.requested.tolist(), batch.indexes.tolist(), batch.targets.tolist())
        return list(zip(*scalars, batch.files(), numbers, strict=True))


def _tensor(output: Any, device: str, pinned: bool) -> Tensor:
    """An output as float32 (B, 3, S, S), where it lies.

    On the CPU it is DALI's own memory, which DALI leaves alone as long as the tensor lives, unless
    pinned. A GPU's is copied, on PyTorch's stream: DALI works on another one.
    """
    from nvidia.dali.plugin.pytorch import feed_ndarray

    dense = output.as_tensor()
    if device == "cpu":
        views = torch.from_dlpack(dense)
        return views.pin_memory() if pinned else views
    current = torch.cuda.current_stream()
    target = torch.empty(dense.shape(), dtype=torch.float32, device=current.device)
    return feed_ndarray(dense, target, cuda_stream=current)


def _decodes(file: np.ndarray) -> bool:
    """Whether DALI's CPU decoder takes the file."""
    probe = _probe()
    probe.feed_input("image", [file])
    try:
        probe.run()
    except RuntimeError:
        _probe.cache_clear()  # it runs no more
        return False
    return True


@functools.cache
def _probe() -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        source = fn.external_source(name="image", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(source, output_type=types.RGB)

    built = pipeline()
    built.build()
    return built


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "there is no GPU for DALI: dali.device=gpu. PyTorch sees no CUDA device. "
            "Set dali.device=cpu."
        )
    return wanted


def _check_installed() -> None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise UserError(
            "DALI is not installed: data.format=dali needs it. Run `pip install "
            "nvidia-dali-cuda130` (or nvidia-dali-cuda120; both run on the CPU too), or set "
            "data.format=image_folder."
        ) from error


def _threads(config: RunConfig, device: str) -> tuple[int, int]:
    """(DALI's threads, processes that read) for one process of the run."""
    wanted = max(1, min(config.data.num_workers, cores_of_each(config.devices)))
    return wanted, 0 if wanted <= 4 and device == "cpu" else max(1, wanted // 4)
