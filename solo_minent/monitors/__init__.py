"""Lightning callbacks that watch a pretraining run for collapse.

They look at tensors that the step has made anyway (`SSLMethod.observer`), detached: no second
forward pass, no random number, no weight touched. A run with them ends bit for bit as one without.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from solo_minent.distributed import gather_packed, global_max
from solo_minent.losses._inputs import autocast_off
from solo_minent.methods import Progress, SSLMethod, Views
from solo_minent.monitors import figures
from solo_minent.monitors.collapse import Watch, class_counts
from solo_minent.schema import RunConfig

__all__ = ["Monitors", "figures", "monitors"]

# Of a larger batch every n-th image: the cost of eigenvalues grows with the cube.
MOST_ROWS = 256


def monitors(config: RunConfig) -> Monitors:
    """The callback of a run, to stand before the one that writes the log."""
    return Monitors(config.monitor_every)


class Monitors(Callback):
    """Logs `monitor_<name>`, the mean over the looks of an epoch, and warns once of collapse.

    Every method: `effective_rank` of the backbone's features of view 1; `embedding_std`,
    `alignment` and `uniformity` of the projector's outputs of the two large views (MinEnt: all
    heads side by side). MinEnt and TWIST: `class_usage`, `sharpness`, and `dead_classes`: how many
    of all heads' classes no image was given in the whole epoch (MinEnt: as its target; TWIST: as
    the largest logit). MEC: `coding_length`, `spectral_radius`. CorInfoMax: `logdet1`, `logdet2`,
    `smallest_eigenvalue`. Formulas: `solo_minent.monitors.figures`.

    On several ranks they are those of the global batch, by one collective a look.

    Args:
        every: batches between two looks, counted back from the last one of the epoch; 0 for none.
    """

    def __init__(self, every: int):
        self.every = every
        self.watch = Watch()
        self.due = False
        self.rows = 0
        self.seen: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return self.watch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(state)

    def rank_state(self) -> list[Tensor]:
        """What `solo_minent.training.saving` keeps of each process."""
        return [seen.cpu() for seen in self.seen]

    def load_rank_state(self, state: list[Tensor]) -> None:
        self.seen = state

    def kept(self) -> list[Tensor]:
        """What a step that is passed over must not have changed."""
        return [seen.clone() for seen in self.seen]

    def put_back(self, kept: list[Tensor]) -> None:
        self.seen = kept

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        module.observer = self.observe if self.every else None

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.observer = None

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        module.observer = None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seen = []

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.every:
            return
        batches = trainer.num_training_batches
        left = batch_idx if math.isinf(batches) else int(batches) - 1 - batch_idx
        self.due = left % self.every == 0

    @torch.no_grad()
    def observe(self, method: SSLMethod, views: Views, progress: Progress) -> None:
        """Takes a look at a step; without waiting for the device where none is due."""
        self._mark(method, views)
        if not self.due:
            return
        with autocast_off(views.feats[0].device):
            found = self.measure(method, views, progress)
        method.log_dict(
            {f"monitor_{name}": value for name, value in found.items()},
            on_step=False,
            on_epoch=True,
            batch_size=1,
            rank_zero_only=True,
        )

    def measure(self, method: SSLMethod, views: Views, progress: Progress) -> dict[str, Tensor]:
        """The figures of one step, of the global batch."""
        tensors = [views.feats[0], *(_embedding(z) for z in views.z[:2])]
        if method.name == "mec":
            tensors += [*views.teacher_z, *views.made["predicted"]]
        feats, z1, z2, *pairs = gather_packed(*(x.detach().float() for x in tensors))
        step = -(-len(feats) // MOST_ROWS)
        some, some1, some2 = feats[::step], z1[::step], z2[::step]
        self.rows = len(some)
        found = {
            "effective_rank": figures.effective_rank(some),
            "embedding_std": (figures.embedding_std(some1) + figures.embedding_std(some2)) / 2,
            "alignment": figures.alignment(some1, some2),
            "uniformity": (figures.uniformity(some1) + figures.uniformity(some2)) / 2,
        }
        if method.name in ("minent", "twist"):
            tau = method.params.tau if method.name == "twist" else 1.0
            heads = torch.cat([z1, z2]).split(class_counts(method), dim=1)
            found |= figures.class_usage(heads, tau)
        elif method.name == "mec":
            p1, p2, q1, q2 = pairs
            lamda_inv = method.lamda_inv(len(p1), progress)
            found |= figures.coding(torch.stack([p1, p2]), torch.stack([q2, q1]), lamda_inv)
        elif method.name == "corinfomax":
            state = method.criterion
            found |= figures.covariance(state.R1, state.R2, state.eps)
        return found

    def _mark(self, method: SSLMethod, views: Views) -> None:
        """Notes which classes the images of this step were given."""
        if method.name == "minent":
            given = [torch.cat(both) for both in zip(*views.made["targets"], strict=True)]
        elif method.name == "twist":
            given = [torch.cat(views.z[: views.num_large]).argmax(dim=1)]
        else:
            return
        if not self.seen:
            self.seen = [torch.zeros(n) for n in class_counts(method)]
        self.seen = [seen.to(given[0].device) for seen in self.seen]
        for seen, classes in zip(self.seen, given, strict=True):
            seen.index_fill_(0, classes, 1.0)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.seen:
            dead = (global_max(torch.cat(self.seen)) == 0).sum()
            module.log("monitor_dead_classes", dead.float(), rank_zero_only=True)
        logged = module.meter.means(module.device)
        if self.every and trainer.is_global_zero:
            message = self.watch.judge(module, logged, self.rows, trainer.current_epoch + 1)
            if message:
                print(message, file=sys.stderr)


def _embedding(z: Tensor | list[Tensor]) -> Tensor:
    return z if isinstance(z, Tensor) else torch.cat(z, dim=1)
