"""solo-learn 1.0.6, the head of the git repository, on today's libraries.

Its collaborators are rebound to subclasses; no class of it is changed, and no code of it copied.
Methods keep their own classes: only what they use is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from solo_minent.errors import UserError
from solo_minent.host import imports, later, registry, shared
from solo_minent.host.module import (
    MethodModule,
    adapted_class,
    backbone_state,
    check_backbone,
    check_optimizer,
    check_scheduler,
    find_method,
    make_params,
    put_into,
    rng_untouched,
)
from solo_minent.host.optimizers import Lars
from solo_minent.host.probe import probe_class
from solo_minent.host.registry import adaptation
from solo_minent.host.schedulers import PlainState
from solo_minent.host.shared import LINEAR_SCHEDULERS, LinearConfig
from solo_minent.methods.base import SSLMethod

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

_LATER = later.TIMM | {
    "solo.utils.auto_umap": later.UMAP,
    "solo.data.dali_dataloader": later.DALI,
}
with imports.quietly(), later.put_off(_LATER), registry.importing("timm_registry"):
    import solo.args.linear
    import solo.args.pretrain
    import solo.methods
    from solo.methods import METHODS, base, linear
    from solo.utils import checkpointer, knn, lr_scheduler, metrics

    try:
        from solo.utils import auto_umap
    except ImportError:  # umap, wandb, seaborn or pandas is missing
        auto_umap = None
    try:
        from solo.data import dali_dataloader
    except ImportError:
        dali_dataloader = None

__all__ = [
    "LinearConfig",
    "adapt",
    "backbone_state",
    "build_method",
    "callbacks",
    "fit_data",
    "linear_probe",
    "register",
]

SCHEDULERS = ("warmup_cosine", "step", "none")


@adaptation
def knn_update_only() -> None:
    """The online kNN only stores features in a step; see `shared.UpdateOnlyMetric`.

    torchmetrics 0.11. May go when solo-learn drops `compute_on_step`.
    """
    base.WeightedKNNClassifier = knn.WeightedKNNClassifier = shared.knn_class(
        knn.WeightedKNNClassifier
    )


@adaptation
def dali_on_cpu() -> None:
    """DALI pipelines for the CPU ask for no GPU.

    Without a GPU they raised "You are trying to create a GPU DALI pipeline while CUDA is not
    available" (DALI 1.x). May go when solo-learn passes `device_id=None` for its device "cpu".
    """

    class OnCPU:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.device == "cpu":
                self.device_id = None

    def adapt() -> None:
        for name in ("Normal", "CustomNormal", "Pretrain"):
            builder = getattr(dali_dataloader, f"{name}PipelineBuilder")
            on_cpu = shared.subclass(builder, [OnCPU], dali_dataloader.__name__)
            setattr(dali_dataloader, f"{name}PipelineBuilder", on_cpu)

    if dali_dataloader is not None:
        later.when_loaded(dali_dataloader, adapt)


@adaptation
def static_lr_state() -> None:
    """Schedulers keep solo-learn's `static_lr` out of their state; see `PlainState`.

    SimSiam and NNSiam raised "Weights only load failed" when resuming (torch 2.6). May go when
    solo-learn does not replace `scheduler.get_lr` any more.
    """
    warmup = shared.subclass(
        lr_scheduler.LinearWarmupCosineAnnealingLR, [PlainState], lr_scheduler.__name__
    )
    base.LinearWarmupCosineAnnealingLR = linear.LinearWarmupCosineAnnealingLR = warmup
    lr_scheduler.LinearWarmupCosineAnnealingLR = warmup
    base.MultiStepLR = shared.subclass(MultiStepLR, [PlainState], base.__name__)


@adaptation
def default_strategy() -> None:
    """A YAML file without `strategy` means "auto".

    solo-learn passes None, and the Trainer raised "You selected an invalid strategy name:
    `strategy=None`" (lightning 2.0). May go when solo-learn's default is "auto".
    """
    for args in (solo.args.pretrain, solo.args.linear):
        original = args.add_and_assert_lightning_cfg

        def add_and_assert_lightning_cfg(
            cfg: DictConfig, original: Callable[[DictConfig], DictConfig] = original
        ) -> DictConfig:
            cfg = original(cfg)
            if cfg.strategy is None:
                cfg.strategy = "auto"
            return cfg

        args.add_and_assert_lightning_cfg = add_and_assert_lightning_cfg


@adaptation
def few_classes() -> None:
    """Top-5 accuracy of fewer than five classes is top-n.

    The linear evaluation and the momentum classifier raised "selected index k out of range". A bug
    of solo-learn (both versions); may go when it is fixed there.
    """
    accuracy_at_k = shared.clamped_accuracy(metrics.accuracy_at_k)
    metrics.accuracy_at_k = base.accuracy_at_k = linear.accuracy_at_k = accuracy_at_k


registry.apply_all()


class SourceMethod(MethodModule):
    """A method on solo-learn 1.0.6: one `cfg`, whose `method_kwargs` are the method's `Params`."""

    _OPTIMIZERS: ClassVar[dict[str, type[Optimizer]]] = {
        **METHODS["base"]._OPTIMIZERS,
        "lars": Lars,
    }

    def __init__(
        self,
        cfg: DictConfig,
        *,
        backbone: nn.Module | None = None,
        lr_factor: Callable[[int], float] | None = None,
    ) -> None:
        if backbone is None:
            super().__init__(cfg)
        else:
            with rng_untouched():
                super().__init__(cfg)
        params = make_params(self.method_class, self.cfg.method_kwargs)
        self._finish(params, backbone, lr_factor)

    def _set_backbone(self, backbone: nn.Module) -> None:
        self.backbone = backbone


@functools.cache
def adapt(method: type[SSLMethod]) -> type[LightningModule]:
    """The LightningModule class of a method, to be used like a method of solo-learn.

    Its constructor takes solo-learn's `cfg`; `cfg.method_kwargs` holds fields of the method's
    `Params`, and `add_and_assert_specific_cfg(cfg)` adds those that are missing.
    """

    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = METHODS["base"].add_and_assert_specific_cfg(cfg)
        params = make_params(method, cfg.method_kwargs)
        cfg.method_kwargs = dataclasses.asdict(params)
        return cfg

    namespace = {"add_and_assert_specific_cfg": staticmethod(add_and_assert_specific_cfg)}
    return adapted_class(method, SourceMethod, METHODS["base"], namespace)


def register(method: type[SSLMethod]) -> type[LightningModule]:
    """Puts a method into `solo.methods.METHODS`; doing it again changes nothing.

    Raises:
        UserError: another method has this name.
    """
    return put_into(METHODS, method, adapt(method))


def build_method(
    config: RunConfig,
    backbone: nn.Module,
    lr_factor: Callable[[int], float] | None = None,
    *,
    num_classes: int,
    online_knn: int | None = None,
) -> LightningModule:
    """The module that is trained.

    Args:
        config: the run; its learning rates are absolute.
        backbone: images (B, 3, H, W) -> features (B, num_features), with `num_features`.
        lr_factor: multiple of each group's learning rate at an optimiser step, stepped every step;
            None for solo-learn's scheduler.
        num_classes: classes of the online classifier.
        online_knn: neighbours of solo-learn's online kNN in validation, None for none.

    Raises:
        UserError: unknown method, optimiser, scheduler or hyper-parameter.
    """
    check_backbone(backbone)
    check_optimizer(config.optimizer.name)
    if lr_factor is None:
        check_scheduler(config.scheduler.name, SCHEDULERS)
    cfg = solo_cfg(config, num_classes, online_knn)
    if lr_factor is None:
        cfg["scheduler"] |= {"name": config.scheduler.name, "interval": config.scheduler.interval}
    method = find_method(METHODS, config.method)
    return method(OmegaConf.create(cfg), backbone=backbone, lr_factor=lr_factor)


def solo_cfg(config: RunConfig, num_classes: int, online_knn: int | None = None) -> dict[str, Any]:
    """What every method of solo-learn takes, without a scheduler."""
    num_large, num_small = shared.crop_counts(shared.augmentations(config))
    return {
        "name": config.name,
        "method": config.method,
        "method_kwargs": config.method_kwargs,
        "backbone": {"name": "resnet18", "kwargs": {}},
        "data": {
            "dataset": "custom",
            "num_classes": num_classes,
            "num_large_crops": num_large,
            "num_small_crops": num_small,
        },
        "optimizer": {
            **_optimizer(
                config.optimizer.name, config.optimizer.kwargs, config.optimizer.exclude_bias_n_norm
            ),
            "batch_size": config.optimizer.batch_size,
            "lr": config.optimizer.lr,
            "classifier_lr": config.optimizer.classifier_lr,
            "weight_decay": config.optimizer.weight_decay,
        },
        "scheduler": {
            "name": "none",
            "interval": "epoch",
            "min_lr": config.scheduler.min_lr,
            "warmup_start_lr": config.scheduler.warmup_start_lr,
            "warmup_epochs": config.scheduler.warmup_epochs,
            "lr_decay_steps": list(config.scheduler.lr_decay_epochs),
        },
        "knn_eval": {"enabled": online_knn is not None, "k": online_knn or 20},
        "max_epochs": config.max_epochs,
        "accumulate_grad_batches": 1,  # solo-learn would multiply the learning rate by it
        "performance": {"disable_channel_last": True},  # the caller's choice, not the host's
    }


def build_peer(
    name: str, config: RunConfig, backbone: nn.Module, num_classes: int, **own: Any
) -> LightningModule:
    """A method of solo-learn's, by `solo_minent.host.peers.build_peer`."""
    cfg = solo_cfg(config, num_classes) | {"method": name, "method_kwargs": own}
    with rng_untouched():
        module = METHODS[name](OmegaConf.create(cfg))
    module.backbone = backbone
    return module


def _optimizer(name: str, given: Any, exclude_bias_n_norm: bool) -> dict[str, Any]:
    extra = dict(given)
    if name == "lars":
        extra.setdefault("exclude_bias_n_norm", exclude_bias_n_norm)
        exclude_bias_n_norm = False
    return {"name": name, "kwargs": extra, "exclude_bias_n_norm_wd": exclude_bias_n_norm}


def callbacks(config: RunConfig, umap: bool = False) -> list[Any]:
    """solo-learn's checkpointer, and its UMAP callback if asked for.

    Raises:
        UserError: UMAP is asked for, and one of its packages is missing.
    """
    cfg = OmegaConf.create(dataclasses.asdict(config))
    found = [checkpointer.Checkpointer(cfg, logdir=config.run_dir / "checkpoints")]
    if umap:
        if auto_umap is None:
            raise UserError(shared.UMAP_MISSING)
        found.append(auto_umap.AutoUMAP(config.name, logdir=config.run_dir / "umap"))
    return found


def fit_data(config: RunConfig) -> dict[str, Any]:
    """Keywords for `Trainer.fit`; see `source_data.fit_data`."""
    from solo_minent.host import source_data

    return source_data.fit_data(config)


def linear_probe(
    backbone: nn.Module,
    linear_config: LinearConfig,
    classifier: nn.Module | None = None,
    make_optimizer: Callable[[nn.Module], Optimizer] | None = None,
) -> LightningModule:
    """solo-learn's linear evaluation of a frozen backbone.

    Args:
        backbone: images (B, 3, H, W) -> features (B, num_features), with `num_features`.
        linear_config: its hyper-parameters.
        classifier: features (B, num_features) -> logits (B, C), see `ProbeModule`; None for a
            linear layer.
        make_optimizer: classifier -> its optimiser, without a scheduler, and no metrics of training
            steps; None for solo-learn's.

    Raises:
        UserError: unknown optimiser or scheduler.
    """
    check_backbone(backbone)
    check_optimizer(linear_config.optimizer)
    check_scheduler(linear_config.scheduler, LINEAR_SCHEDULERS)
    cfg = {
        "data": {"num_classes": linear_config.num_classes},
        "max_epochs": linear_config.max_epochs,
        "optimizer": {
            **_optimizer(linear_config.optimizer, linear_config.optimizer_kwargs, False),
            "batch_size": linear_config.batch_size,
            "lr": linear_config.lr,
            "weight_decay": linear_config.weight_decay,
        },
        "scheduler": {
            "name": linear_config.scheduler,
            "interval": "epoch",
            "warmup_start_lr": 0.0,
            "lr_decay_steps": list(linear_config.lr_decay_steps),
        },
        "performance": {"disable_channel_last": True},
    }
    module = probe_class(METHODS["linear"])(backbone, OmegaConf.create(cfg))
    if classifier is None:
        classifier = nn.Linear(backbone.num_features, linear_config.num_classes)
    module.classifier, module.make_optimizer = classifier, make_optimizer
    return module
