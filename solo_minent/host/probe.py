"""Linear evaluation: what goes in front of solo-learn's LinearModel, on both versions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from solo_minent.host import shared


class ProbeModule:
    """Further classifiers on the same features, and an optimiser that solo-learn does not have.

    A classifier may leave `further_logits`, each (B, C), after a forward pass: they are trained on
    the same labels, while solo-learn's own metrics are those of what it returned.

    Attributes:
        make_optimizer: classifier -> its optimiser; None for solo-learn's. With an optimiser of the
            caller's, metrics of training steps are not logged: on features that took no forward
            pass that is half of the time.
    """

    make_optimizer: Callable[[nn.Module], Optimizer] | None = None

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for logits in getattr(self.classifier, "further_logits", ()):
            loss = loss + F.cross_entropy(logits, batch[1])
        return loss

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.make_optimizer is None or not self.trainer.training:
            super().log_dict(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is None:
            return super().configure_optimizers()
        return self.make_optimizer(self.classifier)


@functools.cache
def probe_class(linear_model: type) -> type:
    """solo-learn's LinearModel with `ProbeModule` in front."""
    return shared.subclass(linear_model, [ProbeModule], linear_model.__module__)
