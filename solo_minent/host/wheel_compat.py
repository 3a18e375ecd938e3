"""solo-learn 1.0.2 made to work on today's libraries: the import, and what is rebound after it.

Collaborators are rebound to subclasses, and methods get a mixin in front; no class of solo-learn
is changed, and no code of it is copied. Names are not rebound in the modules that define methods:
solo-learn's `super(VICReg, VICReg)` would then call itself for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from solo_minent.host import imports, later, registry, shared
from solo_minent.host.registry import adaptation
from solo_minent.host.schedulers import PlainState

imports.check_not_imported()
_LATER = later.TIMM | {
    "solo.utils.auto_umap": later.UMAP,
    "solo.utils.dali_dataloader": later.DALI,
    "solo.methods.dali": later.DALI,
}
with (
    imports.quietly(),
    later.put_off(_LATER, within=lambda: registry.importing("lightning_pytorch")),
    registry.importing("pl_bolts", "distutils", "lightning_pytorch", "timm_registry"),
):
    import solo.methods
    from solo.methods import METHODS, base, linear
    from solo.utils import checkpointer, knn, lars, metrics

    try:
        from solo.utils import auto_umap
    except ImportError:  # umap, wandb, seaborn or pandas is missing
        auto_umap = None
    try:
        from solo.methods import dali
        from solo.utils import dali_dataloader
    except ImportError:
        dali = dali_dataloader = None

__all__ = ["METHODS", "auto_umap", "checkpointer", "dali"]

# (base class, mixin): the mixin goes in front of every method that is a subclass of the base.
_MIXINS: list[tuple[type, type]] = []


class _EpochEndHook:
    """See `validation_epoch_end`."""

    validation_epoch_end = None

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validation_outputs: list[Any] = []

    def on_validation_batch_end(self, outputs: Any, *args: Any) -> None:
        super().on_validation_batch_end(outputs, *args)
        self._validation_outputs.append(outputs)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        super().validation_epoch_end(self._validation_outputs)
        self._validation_outputs.clear()


@adaptation
def validation_epoch_end() -> None:
    """Validation results are averaged in `on_validation_epoch_end`.

    Every fit raised "Support for `validation_epoch_end` has been removed in v2.0.0" (lightning
    2.0). `None` passes that check, and solo-learn's own code stays in reach of `super()`. May go
    with solo-learn 1.0.2.
    """
    _MIXINS.append((LightningModule, _EpochEndHook))


class _MomentumHook:
    """See `momentum_hook`."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx, 0)


@adaptation
def momentum_hook() -> None:
    """The momentum update is called with the data loader's index, which is always 0.

    Momentum methods raised "on_train_batch_end() missing 1 required positional argument:
    'dataloader_idx'" (lightning 2.0). May go with solo-learn 1.0.2.
    """
    _MIXINS.append((base.BaseMomentumMethod, _MomentumHook))


class _ClipHook:
    """See `dino_clip_gradients`."""

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], int | float):
            super().clip_gradients(*args)
        else:
            LightningModule.clip_gradients(self, *args, **kwargs)


@adaptation
def dino_clip_gradients() -> None:
    """DINO's own `clip_gradients(clip)` and lightning's hook of the same name both work.

    DINO raised "clip_gradients() got an unexpected keyword argument 'gradient_clip_val'"
    (lightning 1.5, which made it a hook). May go with solo-learn 1.0.2.
    """
    _MIXINS.append((METHODS["dino"], _ClipHook))


@adaptation
def knn_update_only() -> None:
    """The online kNN only stores features in a step; see `shared.UpdateOnlyMetric`.

    torchmetrics 0.11. May go with solo-learn 1.0.2.
    """
    base.WeightedKNNClassifier = knn.WeightedKNNClassifier = shared.knn_class(
        knn.WeightedKNNClassifier
    )


class LARSWrapper(lars.LARSWrapper):
    """See `lars_closure`."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        super().step()
        return loss


@adaptation
def lars_closure() -> None:
    """LARS runs lightning's closure first, then adapts the gradients that it made.

    Without an error the wrapped optimiser was exactly plain SGD without weight decay: lightning
    (since 1.3) passes forward and backward as a closure, and the wrapper adapted the old gradients
    before it ran the closure. May go with solo-learn 1.0.2.
    """
    lars.LARSWrapper = base.LARSWrapper = linear.LARSWrapper = LARSWrapper


class Checkpointer(checkpointer.Checkpointer):
    """See `checkpointer_on_every_rank`."""

    def save(self, trainer: Any) -> None:
        if not trainer.is_global_zero:
            self.keep_previous_checkpoints = True  # rank 0 deletes
        super().save(shared.View(trainer, is_global_zero=True))


@adaptation
def checkpointer_on_every_rank() -> None:
    """Every rank saves, rank 0 deletes the previous checkpoint.

    With two processes the run hung for ever at the first checkpoint: only rank 0 saved, and
    `Trainer.save_checkpoint` ends in a barrier (lightning 1.6). May go with solo-learn 1.0.2.
    """
    checkpointer.Checkpointer = solo.args.setup.Checkpointer = Checkpointer


@adaptation
def umap_val_dataloaders() -> None:
    """The UMAP callback finds the validation loader.

    It raised "'DataLoader' object is not subscriptable": `trainer.val_dataloaders` is no list any
    more (lightning 2.0). May go with solo-learn 1.0.2.
    """

    def adapt() -> None:
        class AutoUMAP(auto_umap.AutoUMAP):
            def plot(self, trainer: Any, module: LightningModule) -> None:
                super().plot(val_dataloaders_as_list(trainer), module)

        auto_umap.AutoUMAP = solo.args.setup.AutoUMAP = AutoUMAP

    if auto_umap is not None:
        later.when_loaded(auto_umap, adapt)


def val_dataloaders_as_list(trainer: Any) -> Any:
    """The trainer, with `val_dataloaders` as the list that it was before lightning 2.0."""
    loaders = trainer.val_dataloaders
    loaders = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
    return shared.View(trainer, val_dataloaders=loaders)


@adaptation
def dali_on_cpu() -> None:
    """DALI pipelines for the CPU ask for no GPU; see `wheel_data.HostPipeline`.

    Without a GPU they raised "You are trying to create a GPU DALI pipeline while CUDA is not
    available" (DALI 1.x). May go with solo-learn 1.0.2.
    """

    def adapt() -> None:
        from solo_minent.host.wheel_data import on_cpu

        # Before `solo.methods.dali` runs, which takes them from here.
        for name in ("NormalPipeline", "CustomNormalPipeline", "PretrainPipeline"):
            setattr(dali_dataloader, name, on_cpu(getattr(dali_dataloader, name)))

    if dali_dataloader is not None:
        later.when_loaded(dali_dataloader, adapt)


@adaptation
def static_lr_state() -> None:
    """Schedulers keep solo-learn's `static_lr` out of their state; see `PlainState`.

    SimSiam and NNSiam raised "PicklingError: args[0] from __newobj__ args has the wrong class"
    when saving with LARS, and "Weights only load failed" when resuming without (torch 2.6). Our
    `LinearWarmupCosineAnnealingLR` has it already. May go with solo-learn 1.0.2.
    """
    mixin = [PlainState]
    base.CosineAnnealingLR = shared.subclass(CosineAnnealingLR, mixin, base.__name__)
    base.MultiStepLR = shared.subclass(MultiStepLR, mixin, base.__name__)


@adaptation
def few_classes() -> None:
    """Top-5 accuracy of fewer than five classes is top-n.

    The linear evaluation and the momentum classifier raised "selected index k out of range". A bug
    of solo-learn (both versions); may go when it is fixed there.
    """
    accuracy_at_k = shared.clamped_accuracy(metrics.accuracy_at_k)
    metrics.accuracy_at_k = base.accuracy_at_k = linear.accuracy_at_k = accuracy_at_k


def _front(cls: type) -> type:
    """The class with its mixins in front, as solo-learn's users find it in `solo.methods`."""
    mixins = [mixin for of, mixin in reversed(_MIXINS) if issubclass(cls, of)]
    return shared.subclass(cls, mixins, solo.methods.__name__)


registry.apply_all()
for _name, _cls in list(METHODS.items()):
    METHODS[_name] = _front(_cls)
    setattr(solo.methods, _cls.__name__, METHODS[_name])
linear.LinearModel = METHODS["linear"]
