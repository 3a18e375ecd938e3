"""No update from a loss or a gradient that is not finite."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
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

FOLDER = "nonfinite"  # in the run's folder
# float16 gradients that overflow at this scale of the loss are not its scale's fault (fairseq's
# default of --min-loss-scale).
MIN_SCALE = 1e-4
SHOWN = 3  # names in a message; the files have all


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
class _Found:
    """What a process found not to be finite in a step or in what was to be saved.

    Attributes:
        terms: of the loss, "nan", "inf" or "-inf" of each.
        tensors: names of gradients, or of weights and other state.
        images: those of the step's last batch are not finite themselves.
        unlisted: why its images could not be written down.
        last: what the first process says of the last checkpoint.
    """

    terms: dict[str, str] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=list)
    images: bool = False
    unlisted: str = ""
    last: str = ""


class NonFiniteGuard(Callback):
    """Stops a run, or passes over a step, before NaN or infinity reaches the weights.

    It looks at all terms of the loss, of every batch of an optimiser step, and at all gradients,
    before they are clipped; processes decide together. With a loss scale (16-mixed) gradients that
    are not finite are left to its search, until it has fallen below `MIN_SCALE`. Each process lists
    its images of such a step in `nonfinite/step-<step>-rank-<rank>.json` of the run's folder.

    A step that is passed over changes nothing but random numbers, the learning rate's schedule and
    the loss scale: weights, optimiser and teacher stay, and what the forward pass has moved (batch
    norms, CorInfoMax's R and mu, means of the log) goes back. `skipped_steps` counts them in the
    log.

    What is not finite is not saved either, so that the checkpoint on disk is a good one.

    Costs a value read from the device at each optimiser step; a copy of all buffers where steps may
    be skipped. Put it in front of what logs and saves.

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
        batches, self._batches = self._batches, []
        if not self._bad(trainer, module, batches):
            return
        step, epoch = trainer.global_step + 1, trainer.current_epoch + 1
        found = self._found(batches, self._views, step, epoch)
        what = f"{_what(found)} at step {step} on {_where(found)} (epoch {epoch})"
        listed = self._listed(found, step)
        if self.skipped >= self.skip:
            raise UserError(
                f"training is not finite: {what}. The weights are those before this step; "
                f"{found[0].last}. {listed} {self._advice()}"
            )
        self.skipped += 1
        self._undo(module)
        if trainer.is_global_zero:
            count = f"{self.skipped} of guard.skip={self.skip}"
            print(f"step passed over ({count}): {what}. {listed}", file=sys.stderr)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.skip:
            module.log("skipped_steps", float(self.skipped), rank_zero_only=True)

    def _bad(self, trainer: Trainer, module: LightningModule, batches: list[_Batch]) -> bool:
        """Whether the step must not be made, the same on every process."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        terms = [term for batch in batches for term in batch.terms.values()]
        terms = [term.to(module.device, torch.float64, non_blocking=True) for term in terms]
        checked = torch.stack(terms), torch.stack(torch._foreach_norm(gradients))
        flags = torch.stack([~tensor.isfinite().all() for tensor in checked])
        lost, large = global_max(flags.float()).tolist()
        if large:  # squares overflow where gradients do not
            flag = ~torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
            large = global_max(flag.float()).item()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if large and not lost and scaler is not None:
            return scaler.get_scale() < MIN_SCALE
        return bool(lost or large)

    def _undo(self, module: LightningModule) -> None:
        """Makes the step under way one that never was."""
        module.zero_grad(set_to_none=True)
        module.update_refused = True
        _copy(self._buffers, self._copies)
        for holder, kept in zip(self.holders, self._kept, strict=True):
            holder.put_back(kept)

    # What is said of it.

    def _found(self, batches: list[_Batch], views: Any, step: int, epoch: int) -> list[_Found]:
        """Writes this process' file; what every process found, in the order of their ranks."""
        gradients = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        values = [{name: term.item() for name, term in batch.terms.items()} for batch in batches]
        found = _Found(tensors=_not_finite(gradients))
        for terms in values:
            wrong = {name: value for name, value in terms.items() if not math.isfinite(value)}
            found.terms |= {name: str(value) for name, value in wrong.items()}
        views = [views] if isinstance(views, Tensor) else views
        found.images = any(not view.isfinite().all() for view in views)
        report = {
            "step": step,
            "epoch": epoch,
            "rank": rank(),
            "batches": [
                {"batch": batch.number, "terms": _plain(terms), **self._named(batch.indices)}
                for batch, terms in zip(batches, values, strict=True)
            ],
            "gradients": found.tensors,
        }
        try:
            write_json(self._file(step, rank()), report)
        except (OSError, UserError) as error:  # it must not hide why the run stops
            found.unlisted = str(error)
        return self._gather(found)

    def _gather(self, own: _Found) -> list[_Found]:
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

    def _listed(self, found: Sequence[_Found], step: int) -> str:
        ranks = _ranks(found)
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
        found = self._gather(_Found(tensors=_not_finite(tensors)))
        raise UserError(
            f"training is not finite: {_names(found[_ranks(found)[0]].tensors)} after step "
            f"{trainer.global_step} on {_where(found)}. That is not saved; {found[0].last}. Lower "
            "optimizer.lr, in a new run with another name=…"
        )


def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
    if into:  # a network may have no buffers
        torch._foreach_copy_(into, tensors)


def _plain(terms: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no word for what is not finite."""
    return {name: value if math.isfinite(value) else str(value) for name, value in terms.items()}


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


def _ranks(found: Sequence[_Found]) -> list[int]:
    """The processes that it came from: losses of all images carry what one of them brought in."""
    for guilty in (
        [one.images for one in found],
        [len(one.terms) for one in found],
        [len(one.tensors) for one in found],
    ):
        if any(guilty):
            return [of for of, much in enumerate(guilty) if much == max(guilty)]
    return list(range(len(found)))


def _where(found: Sequence[_Found]) -> str:
    ranks = _ranks(found)
    if len(ranks) == len(found) > 1:
        return f"all {len(found)} ranks"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _what(found: Sequence[_Found]) -> str:
    one = found[_ranks(found)[0]]
    if one.terms:
        return ", ".join(f"{name} is {value}" for name, value in one.terms.items())
    return f"gradient of {_names(one.tensors)}"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
