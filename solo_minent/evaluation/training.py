"""What linear evaluation and fine-tuning share: batches, heads, optimisers, schedules, one fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from solo_minent.console import progress_bar, quiet_lightning
from solo_minent.data.transforms import ToNormalizedTensor, eval_transform, normalization
from solo_minent.errors import UserError
from solo_minent.evaluation.features import computing
from solo_minent.schedules import cosine

if TYPE_CHECKING:
    from PIL.Image import Image

    from solo_minent.schema import DataConfig, FinetuneConfig, LinearConfig

NORM_EPS = 1e-6  # MEC's head
INIT_STD = 0.01  # MEC's, TWIST's and VICReg's heads
TRUST = 0.001  # LARC's coefficient in MEC's evaluation
CHUNK = 1 << 16  # rows that a head sees at once when it is measured


class Outcome(NamedTuple):
    """What a training found, as `store_result` takes it."""

    protocol: str
    metrics: dict[str, float]
    splits: dict[str, int]
    details: dict[str, Any]


# Images.


def random_view(
    settings: LinearConfig | FinetuneConfig, data: DataConfig
) -> Callable[[Image], Tensor]:
    """Random resized crop and flip: RGB PIL image -> float32 (3, S, S)."""
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(settings.interpolation)
    crop = tv.RandomResizedCrop(data.image_size, tuple(settings.crop_scale), interpolation=mode)
    normalize = ToNormalizedTensor(*normalization(data))
    return tv.Compose([crop, tv.RandomHorizontalFlip(), normalize])


def central_view(
    settings: LinearConfig | FinetuneConfig, data: DataConfig
) -> Callable[[Image], Tensor]:
    """Short side to S * resize / 224 (rounded down), central crop: -> float32 (3, S, S)."""
    from torchvision import transforms as tv

    size, constants = data.image_size, normalization(data)
    if settings.resize is None:
        return eval_transform(data.dataset, size, *constants)
    mode = tv.InterpolationMode(settings.interpolation)
    short = size * settings.resize // 224
    normalize = ToNormalizedTensor(*constants)
    return tv.Compose([tv.Resize(short, interpolation=mode), tv.CenterCrop(size), normalize])


class ShuffledBatches(Sampler):
    """Rows 0 … count - 1 in batches, in a new order each time; every row once.

    The last batch may be smaller; a last one of a single row joins the batch before it, as batch
    norm needs two.

    Args:
        count: of the rows.
        batch_size: rows of a batch.
        seed: of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size = count, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        single = self.count % self.batch_size == 1 and self.count > 1
        return -(-self.count // self.batch_size) - single

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.count, generator=self.generator)
        last = (len(self) - 1) * self.batch_size
        for start in range(0, last, self.batch_size):
            yield order[start : start + self.batch_size].tolist()
        yield order[last:].tolist()


# What is trained.


class Heads(nn.Module):
    """Linear classifiers on the same features, one for each learning rate: (B, D) -> (B, C).

    Returns the logits of the first; those of the others stay in `further_logits`.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.further_logits: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        first, *self.further_logits = [head(features) for head in self.heads]
        return first


def make_head(
    settings: LinearConfig | FinetuneConfig, num_features: int, classes: int
) -> nn.Module:
    """The linear layer of a protocol, with its batch norm and initialisation."""
    linear = nn.Linear(num_features, classes)
    if settings.init == "normal":
        nn.init.normal_(linear.weight, std=INIT_STD)
        nn.init.zeros_(linear.bias)
    if settings.head_norm == "none":
        return linear
    return nn.Sequential(nn.BatchNorm1d(num_features, eps=NORM_EPS, affine=False), linear)


def make_optimizer(
    settings: LinearConfig | FinetuneConfig, groups: Sequence[Mapping[str, Any]]
) -> Optimizer:
    """The optimiser of a protocol; each group is `{"params": …, "lr": …}`.

    larc is timm's LARS with its trust ratio on every tensor: the arithmetic of apex's LARC with
    clip=False, which MEC uses.
    """
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "larc":
        from timm.optim import Lars

        return Lars(
            groups,
            momentum=settings.momentum,
            weight_decay=decay,
            trust_coeff=TRUST,
            eps=1e-8,
            always_adapt=True,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, weight_decay=decay)


def epoch_lr(
    settings: LinearConfig | FinetuneConfig,
    lr: float,
    final_lr: float = 0.0,
    gamma: float | None = None,
) -> Callable[[int], float]:
    """The learning rate of each epoch, counted from 0.

    Args:
        settings: scheduler, epochs and, for step, lr_decay_epochs and gamma.
        lr: of the first epoch.
        final_lr: exponential: of the last epoch; cosine: of the epoch after it.
        gamma: instead of `settings.gamma`.
    """
    epochs, gamma = settings.max_epochs, settings.gamma if gamma is None else gamma
    if settings.scheduler == "exponential":
        return lambda epoch: lr * (final_lr / lr) ** (epoch / max(epochs - 1, 1))
    if settings.scheduler == "cosine":
        return lambda epoch: cosine(lr, final_lr, epoch / epochs)
    decays = settings.lr_decay_epochs
    return lambda epoch: lr * gamma ** sum(epoch >= decay for decay in decays)


# Training.


class EpochRates(Callback):
    """Sets the learning rate of each group at the start of an epoch; shows a bar of steps."""

    def __init__(self, rates: Sequence[Callable[[int], float]], title: str, progress: bool) -> None:
        self.rates, self.title = rates, title
        self.progress = progress_bar(progress)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.progress.start()
        total = trainer.max_epochs * trainer.num_training_batches
        self.task = self.progress.add_task(self.title, total=total)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate(trainer.current_epoch)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.progress.advance(self.task)

    def on_exception(self, *_: Any, **__: Any) -> None:
        self.progress.stop()

    def teardown(self, *_: Any, **__: Any) -> None:
        self.progress.stop()


def fit(
    module: pl.LightningModule,
    loader: Any,
    epochs: int,
    rates: Sequence[Callable[[int], float]],
    accelerator: str = "auto",
    precision: str = "32",
    title: str = "training",
    progress: bool = True,
) -> None:
    """Trains a module in one process; it ends on the CPU.

    Args:
        module: its one optimiser has as many groups as there are rates.
        loader: batches.
        epochs: how often it is gone through.
        rates: learning rate of each group, by epoch.
        accelerator: Lightning's.
        precision: `32`, `tf32`, or Lightning's `bf16-mixed` or `16-mixed`.
        title: of the bar.
        progress: show a bar.

    Raises:
        KeyboardInterrupt: stopped by the user.
    """
    mixed = precision not in ("32", "tf32")
    device = "cpu" if accelerator == "cpu" or not torch.cuda.is_available() else "cuda"
    with quiet_lightning(), computing(None if mixed else precision, device):
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=precision if mixed else "32-true",
            callbacks=[EpochRates(rates, title, progress)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, loader)
    module.cpu()


@contextmanager
def untouched(backbone: nn.Module) -> Iterator[None]:
    """solo-learn takes the gradients of a backbone away for good; here they come back."""
    wanted = [(p, p.requires_grad) for p in backbone.parameters()]
    modes = [(m, m.training) for m in backbone.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad = requires_grad
        for module, mode in modes:
            module.training = mode


class DivergedError(UserError):
    """What was trained gives numbers that are not finite."""


@torch.inference_mode()
def accuracies(head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and `top5` (top C below five classes) of a head in eval mode, in percent.

    Raises:
        DivergedError: its outputs are not finite.
    """
    head = head.cpu().eval()
    hits = []
    for rows in torch.arange(len(features)).split(CHUNK):
        logits = head(features[rows])
        if not logits.isfinite().all():
            raise DivergedError(
                "training has diverged: the linear layer gives NaN or infinity. A rate is too "
                "large for these features, or they are not finite. Lower the protocol's lr."
            )
        hits.append(logits.topk(min(5, logits.shape[1])).indices == labels[rows, None])
    top1, top5 = torch.cat(hits)[:, 0], torch.cat(hits).any(1)
    return {"top1": 100 * top1.double().mean().item(), "top5": 100 * top5.double().mean().item()}


def accuracies_of_all(
    heads: Iterable[nn.Module], features: Tensor, labels: Tensor
) -> list[dict[str, float]]:
    """`accuracies` of several heads; one that diverged has none right.

    Raises:
        DivergedError: all of them did.
    """
    found: list[dict[str, float]] = []
    errors: list[DivergedError] = []
    for head in heads:
        try:
            found.append(accuracies(head, features, labels))
        except DivergedError as error:
            errors.append(error)
            found.append({"top1": 0.0, "top5": 0.0})
    if len(errors) == len(found):
        raise errors[0]
    return found


# What is wrong before it starts.


def check_labels(train: np.ndarray | Tensor, test: np.ndarray | Tensor, classes: int) -> None:
    """Checks that labels are 0 … classes - 1, and that there is something to tell apart.

    Raises:
        UserError: they are not, a split is empty, or the training labels are all the same.
    """
    for name, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise UserError(
                f"no labelled images: the {name} split is empty. An evaluation needs both. "
                "Evaluate on a labelled data set."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"labels do not suit a linear classifier: {low} to {high} with {classes} classes. "
                "They must be 0 … classes - 1. Evaluate on a labelled data set."
            )
    if int(train.min()) == int(train.max()):
        raise UserError(
            f"labels do not suit a linear classifier: all {len(train)} training images are of "
            f"class {int(train.min())}. It tells classes apart. Use more images or classes."
        )


def check_batch(key: str, batch_size: int, images: int) -> None:
    """Raises UserError if a batch is larger than the training set."""
    if batch_size > images:
        raise UserError(
            f"{key} is larger than the training set: {batch_size}, of {images} images. The rates "
            f"of a protocol are those of its batch. Set {key}={images}, and a rate to match."
        )
