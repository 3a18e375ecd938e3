"""No update from a loss or a gradient that is not finite."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.checkpoint_io import read_checkpoint
from solo_minent.data.images import ImageSet
from solo_minent.distributed import global_max, is_distributed, rank, world_size
from solo_minent.errors import UserError
from solo_minent.files import write_json
from solo_minent.schema import RunConfig
from solo_minent.training.late import Late
from solo_minent.training.nonfinite import Found, guilty_ranks, plain, said, some, where

FOLDER = "nonfinite"  # in the run's folder
# float16 gradients that overflow at this scale of the loss are not its scale's fault (fairseq's
# default of --min-loss-scale).
MIN_SCALE = 1e-4


class Undoable(Protocol):
    """What takes in values of a step while its loss is not known yet."""

    def kept(self) -> Any: ...

    def put_back(self, kept: Any) -> None: ...


@dataclass
class _Batch:
    """One batch of a step: where it stands in the epoch, its images, what the loss said of it."""

    number: int
    indices: Any
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Step:
    """An optimiser step whose numbers are on their way: what they are called."""

    number: int
    epoch: int
    batches: list[_Batch]
    gradients: list[str]


@dataclass
class _Seen:
    """The numbers of a step: of each batch its terms, of each gradient a norm.

    Attributes:
        lost: a term of some process is not finite.
        large: nor is a gradient of some process.
        scale: of the loss, 0 without one.
        images: a norm of the last batch's.
    """

    lost: bool
    large: bool
    scale: float
    images: float
    norms: dict[str, float]
    terms: list[dict[str, float]]

    @property
    def bad(self) -> bool:
        """The step must not be made, the same on every process."""
        return self.lost or (self.large and self.scale < MIN_SCALE)


class NonFiniteGuard(Callback):
    """Stops a run, or passes over a step, before NaN or infinity reaches the weights.

    It looks at all terms of the loss, of every batch of an optimiser step, and at all gradients,
    before they are clipped; processes decide together. With a loss scale (16-mixed) gradients that
    are not finite are left to its search, until it has fallen below `MIN_SCALE`. Each process lists
    its images of such a step in `nonfinite/step-<step>-rank-<rank>.json` of the run's folder.

    Where no step may be passed over, no step waits for the device either: the optimiser is told on
    the device to leave the weights as they are, and what was seen is read one step later, before
    validation and before every checkpoint. Where steps may be, or the optimiser cannot be told
    (torch's without `fused`), it has to know within the step, and waits.

    A step that is passed over changes nothing but random numbers, the learning rate's schedule and
    the loss scale: weights, optimiser and teacher stay, and what the forward pass has moved (batch
    norms, CorInfoMax's R and mu, means of the log) goes back. `skipped_steps` counts them in the
    log.

    What is not finite is not saved either, so that the checkpoint on disk is a good one.

    Costs a pass over the gradients and the images, one small exchange between processes, and a copy
    of all buffers where steps may be skipped. Put it in front of what logs and saves.

    Args:
        config: of the run.
        images: to name them; None if they have no names.
        holders: what else a step that is passed over must not leave a trace in.

    Raises:
        UserError: something is not finite, and no step may be passed over (any more).
    """

    def __init__(
        self, config: RunConfig, images: ImageSet | None, holders: Sequence[Undoable] = ()
    ) -> None:
        self.skip, self.run_dir = config.guard.skip, Path(config.run_dir)
        self.images, self.holders = images, holders
        self.skipped = 0
        self._exempt: set[str] = set()
        self._batches: list[_Batch] = []
        self._numbers, self._step = Late(), None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]

    # A step.

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._parameters = dict(module.named_parameters())
        self._buffers = list(module.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers] if self.skip else []
        # Such as a mask of -inf.
        self._exempt = set(_not_finite(_floating(module.state_dict())))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.skip and not self._batches:
            _copy(self._copies, self._buffers)
            self._kept = [holder.kept() for holder in self.holders]
        self._batches.append(_Batch(batch_idx, batch[0]))
        self._views = batch[1]

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        self._batches[-1].terms = module.terms

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._views = None  # their memory is the next batch's

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._settle(trainer)
        flags = self._look(trainer, module)
        if self.skip:
            self._settle(trainer, module)
        elif not _refuse(optimizer, flags, _scaler(trainer) is not None):
            self._settle(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._settle(trainer)
        if self.skip:
            module.log("skipped_steps", float(self.skipped), rank_zero_only=True)

    def _look(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """Sends the numbers of the step under way, without waiting for any of them.

        Returns:
            (2,) on the device: 1 where a term, and where a gradient of some process is not finite.
        """
        batches, self._batches = self._batches, []
        named = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        terms = [term for batch in batches for term in batch.terms.values()]
        views = [self._views] if isinstance(self._views, Tensor) else list(self._views)
        scaler = _scaler(trainer)
        scale = torch.zeros((), device=module.device)
        if scaler is not None:
            scale = scaler.scale(torch.ones_like(scale))  # without reading it
        checked = [_packed(module.device, terms), _norms(list(named.values()))]
        flags = global_max(torch.stack([~each.isfinite().all() for each in checked]).double())
        others = [scale.double(), _norms(views).sum()]
        self._numbers.send(torch.cat([flags, torch.stack(others), *reversed(checked)]))
        step, epoch = trainer.global_step + 1, trainer.current_epoch + 1
        self._step = _Step(step, epoch, batches, list(named))
        return flags

    def _settle(self, trainer: Trainer, undo: LightningModule | None = None) -> None:
        """Reads the numbers of the last step, if they were not yet; `undo`: it is under way."""
        step, self._step = self._step, None
        if step is None:
            return
        seen = _seen(step, self._numbers.read())
        if not seen.bad:
            return
        found = self._found(step, seen)
        what = f"{said(found)} at step {step.number} on {where(found)} (epoch {step.epoch})"
        listed = self._listed(found, step.number)
        if undo is None or self.skipped >= self.skip:
            raise UserError(
                f"training is not finite: {what}. The weights are those before this step; "
                f"{found[0].last}. {listed} {self._advice()}"
            )
        self.skipped += 1
        self._undo(undo)
        if trainer.is_global_zero:
            count = f"{self.skipped} of guard.skip={self.skip}"
            print(f"step passed over ({count}): {what}. {listed}", file=sys.stderr)

    def _undo(self, module: LightningModule) -> None:
        """Makes the step under way one that never was."""
        module.zero_grad(set_to_none=True)
        module.update_refused = True
        _copy(self._buffers, self._copies)
        for holder, kept in zip(self.holders, self._kept, strict=True):
            holder.put_back(kept)

    # What is said of it.

    def _found(self, step: _Step, seen: _Seen) -> list[Found]:
        """Writes this process' file; what every process found, in the order of their ranks."""
        found = Found(tensors=[n for n, norm in seen.norms.items() if not math.isfinite(norm)])
        for terms in seen.terms:
            wrong = {name: value for name, value in terms.items() if not math.isfinite(value)}
            found.terms |= {name: str(value) for name, value in wrong.items()}
        found.images = not math.isfinite(seen.images)
        report = {
            "step": step.number,
            "epoch": step.epoch,
            "rank": rank(),
            "batches": [
                {"batch": batch.number, "terms": plain(terms), **self._named(batch.indices)}
                for batch, terms in zip(step.batches, seen.terms, strict=True)
            ],
            "gradients": found.tensors,
        }
        try:
            write_json(self._file(step.number, rank()), report)
        except (OSError, UserError) as error:  # it must not hide why the run stops
            found.unlisted = str(error)
        return self._gather(found)

    def _gather(self, own: Found) -> list[Found]:
        if rank() == 0:
            own.last = self._last_checkpoint()
        found = [own] * world_size()
        if is_distributed():
            dist.all_gather_object(found, own)
        return found

    def _named(self, indices: Any) -> dict[str, list]:
        indices = torch.as_tensor(indices).flatten().tolist()
        if self.images is None:
            return {"indices": indices}
        return {"indices": indices, "names": [self.images.name_of(index) for index in indices]}

    def _file(self, step: int, of: int) -> Path:
        return self.run_dir / FOLDER / f"step-{step}-rank-{of}.json"

    def _listed(self, found: Sequence[Found], step: int) -> str:
        ranks = guilty_ranks(found)
        if found[ranks[0]].unlisted:
            return f"The images of the batch could not be listed: {found[ranks[0]].unlisted}"
        own = " They hold values that are not finite." if found[ranks[0]].images else ""
        return f"The images of the batch are listed in {self._file(step, ranks[0])}.{own}"

    def _last_checkpoint(self) -> str:
        path = self.run_dir / CHECKPOINT_FILE
        if not path.is_file():
            return "there is no checkpoint yet"
        try:
            step = read_checkpoint(path)["global_step"]
        except (OSError, UserError) as error:
            return f"the last checkpoint cannot be read ({error})"
        return f"the last good checkpoint is {path} (step {step})"

    def _advice(self) -> str:
        path = self.run_dir / CHECKPOINT_FILE
        again = f" --resume-from {path}" if path.is_file() else ""
        already = f" ({self.skip} were)" if self.skip else ""
        return (
            "Lower optimizer.lr, in a new run with another name=…, or pass over such steps"
            f"{already} with guard.skip={self.skip + 1}{again}"
        )

    # A checkpoint.

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle(trainer)
        tensors = _floating(checkpoint["state_dict"])
        tensors = {name: t for name, t in tensors.items() if name not in self._exempt}
        names = {parameter: name for name, parameter in module.named_parameters()}
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                own = {f"{key} of {names[parameter]}": value for key, value in state.items()}
                tensors |= _floating(own)
        flag = torch.tensor(bool(_not_finite(tensors)), dtype=torch.float32, device=module.device)
        if not global_max(flag):
            return
        found = self._gather(Found(tensors=_not_finite(tensors)))
        raise UserError(
            f"training is not finite: {some(found[guilty_ranks(found)[0]].tensors)} after step "
            f"{trainer.global_step} on {where(found)}. That is not saved; {found[0].last}. Lower "
            "optimizer.lr, in a new run with another name=…"
        )


def _scaler(trainer: Trainer) -> Any:
    """The loss scale of 16-mixed, which itself leaves out updates that are not finite, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _refuse(optimizer: Optimizer, flags: Tensor, scaled: bool) -> bool:
    """Has the next update left out where one of `flags` is 1; False if the optimiser cannot.

    By what a loss scale tells a fused optimiser of torch; the scale itself looks at gradients only.
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    if fused and scaled:
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
        next(g for g in gradients if g is not None).masked_fill_(flags[0] > 0, math.nan)
    elif fused or getattr(optimizer, "heeds_found_inf", False):
        optimizer.found_inf, optimizer.grad_scale = flags.amax().float(), None
    else:
        return False
    return True


def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
    if into:  # a network may have no buffers
        torch._foreach_copy_(into, tensors)


def _packed(device: torch.device, scalars: Sequence[Tensor]) -> Tensor:
    """float64 (n,) on the device, without waiting for it."""
    return torch.stack([x.to(device, torch.float64, non_blocking=True) for x in scalars])


def _norms(tensors: list[Tensor]) -> Tensor:
    """(n,) Euclidean norms, finite where a tensor is: no square overflows float64."""
    return _packed(tensors[0].device, torch._foreach_norm(tensors, 2, dtype=torch.float64))


def _seen(step: _Step, numbers: list[float]) -> _Seen:
    (lost, large, scale, images), rest = numbers[:4], iter(numbers[4:])
    norms = {name: next(rest) for name in step.gradients}
    terms = [{name: next(rest) for name in batch.terms} for batch in step.batches]
    return _Seen(bool(lost), bool(large), scale, images, norms, terms)


def _floating(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of real numbers with at least one dimension (a count of steps stays on the CPU)."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim
    }


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those with NaN or infinity; one read from the device where there are none."""
    if not tensors:
        return []
    norms = torch._foreach_norm(list(tensors.values()))
    if torch.stack([norm.double() for norm in norms]).isfinite().all():
        return []
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
