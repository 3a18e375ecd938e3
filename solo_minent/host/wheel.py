"""solo-learn 1.0.2, the release on PyPI (November 2021): keyword arguments and argparse."""

from __future__ import annotations

import dataclasses
import functools
import typing
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from solo_minent.errors import UserError
from solo_minent.host import shared
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
    without_weight_decay,
)
from solo_minent.host.optimizers import Lars
from solo_minent.host.probe import probe_class
from solo_minent.host.shared import LINEAR_SCHEDULERS, LinearConfig
from solo_minent.host.wheel_compat import METHODS, auto_umap, checkpointer, dali
from solo_minent.methods.base import SSLMethod

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

__all__ = [
    "LinearConfig",
    "adapt",
    "backbone_state",
    "build_method",
    "callbacks",
    "fit_data",
    "linear_probe",
    "register",
    "with_dali",
]

SCHEDULERS = ("warmup_cosine", "cosine", "step", "none")


def with_dali(method: type[LightningModule]) -> type[LightningModule]:
    """A method that makes its own DALI loader from `extra_args`, as solo-learn's scripts did.

    Their `class (Method, PretrainABC)` raises "`train_dataloader` must be implemented" since
    LightningModule is no abstract class any more (lightning 1.5): the mixin has to come first.
    """
    return type(f"DALI{method.__name__}", (dali.PretrainABC, method), {})


class WheelMethod(MethodModule):
    """A method on solo-learn 1.0.2: keyword arguments, `encoder`, command-line arguments."""

    def __init__(
        self,
        *,
        exclude_bias_n_norm_wd: bool = False,
        backbone: nn.Module | None = None,
        lr_factor: Callable[[int], float] | None = None,
        **kwargs: Any,
    ) -> None:
        names = {field.name for field in dataclasses.fields(self.Params)}
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        params = make_params(self.method_class, given)
        if backbone is None:
            super().__init__(**kwargs)
        else:
            with rng_untouched():
                super().__init__(**{**kwargs, "encoder": "resnet18", "backbone_args": {}})
        self.exclude_bias_n_norm_wd = exclude_bias_n_norm_wd
        self._finish(params, backbone, lr_factor)

    @property
    def backbone(self) -> nn.Module:
        """The network that is pretrained; solo-learn 1.0.2 calls it `encoder`."""
        return self.encoder

    def _set_backbone(self, backbone: nn.Module) -> None:
        self.encoder = backbone

    def _optimizer(self) -> Optimizer:
        if not self.lars:
            return super()._optimizer()
        return Lars(
            self.learnable_params,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eta=self.eta_lars,
            clip_lr=self.grad_clip_lars,
            exclude_bias_n_norm=self.exclude_bias_n_norm,
            **self.extra_optimizer_args,
        )

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        groups = super().learnable_params
        return without_weight_decay(groups) if self.exclude_bias_n_norm_wd else groups


@functools.cache
def adapt(method: type[SSLMethod]) -> type[LightningModule]:
    """The LightningModule class of a method, to be used like a method of solo-learn.

    Its constructor takes solo-learn's keywords and every field of the method's `Params`, and its
    `add_model_specific_args(parser)` adds them all to a parser.
    """

    def add_model_specific_args(parent_parser: ArgumentParser) -> ArgumentParser:
        parser = METHODS["base"].add_model_specific_args(parent_parser)
        _add_params(parser, method)
        return parser

    namespace = {"add_model_specific_args": staticmethod(add_model_specific_args)}
    return adapted_class(method, WheelMethod, METHODS["base"], namespace)


def _add_params(parser: ArgumentParser, method: type[SSLMethod]) -> None:
    group = parser.add_argument_group(method.name)
    types = typing.get_type_hints(method.Params)
    for field in dataclasses.fields(method.Params):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind, many = types[field.name], {}
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        if typing.get_origin(kind) in (list, tuple):
            many = {"nargs": "+"}
        if inner:  # list[int] or int | None
            kind = inner[0]
        how = {"action": BooleanOptionalAction} if kind is bool else {"type": kind, **many}
        group.add_argument(f"--{field.name}", default=default, **how)


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
            None for solo-learn's scheduler, which steps every epoch in this version.
        num_classes: classes of the online classifier.
        online_knn: neighbours of solo-learn's online kNN in validation, None for none.

    Raises:
        UserError: unknown method, optimiser, scheduler or hyper-parameter.
    """
    check_backbone(backbone)
    check_optimizer(config.optimizer.name)
    if lr_factor is None:
        check_scheduler(config.scheduler.name, SCHEDULERS)
    return find_method(METHODS, config.method)(
        backbone=backbone,
        lr_factor=lr_factor,
        scheduler=config.scheduler.name if lr_factor is None else "none",
        **solo_keywords(config, num_classes, online_knn),
        **config.method_kwargs,
    )


def solo_keywords(
    config: RunConfig, num_classes: int, online_knn: int | None = None
) -> dict[str, Any]:
    """What every method of solo-learn takes, but for its scheduler and the method's own."""
    optimizer = _optimizer_keywords(
        config.optimizer.name, config.optimizer.kwargs, config.optimizer.exclude_bias_n_norm
    )
    num_large, num_small = shared.crop_counts(shared.augmentations(config))
    return {
        "encoder": "resnet18",
        "num_classes": num_classes,
        "backbone_args": {},
        "max_epochs": config.max_epochs,
        "batch_size": config.optimizer.batch_size,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "classifier_lr": config.optimizer.classifier_lr,
        "accumulate_grad_batches": 1,  # solo-learn would multiply the learning rate by it
        "min_lr": config.scheduler.min_lr,
        "warmup_start_lr": config.scheduler.warmup_start_lr,
        "warmup_epochs": config.scheduler.warmup_epochs,
        "lr_decay_steps": list(config.scheduler.lr_decay_epochs),
        "num_large_crops": num_large,
        "num_small_crops": num_small,
        "knn_eval": online_knn is not None,
        "knn_k": online_knn or 20,
        **optimizer,
    }


def build_peer(
    name: str, config: RunConfig, backbone: nn.Module, num_classes: int, **own: Any
) -> LightningModule:
    """A method of solo-learn's, by `solo_minent.host.peers.build_peer`."""
    keywords = solo_keywords(config, num_classes)
    keywords.pop("exclude_bias_n_norm_wd", None)  # our methods have it, its own have not
    with rng_untouched():
        module = METHODS[name](**keywords, scheduler="none", **own)
    module.encoder = backbone
    return module


def _optimizer_keywords(name: str, given: Any, exclude_bias_n_norm: bool) -> dict[str, Any]:
    """solo-learn 1.0.2 has LARS as a wrapper of SGD, with keywords of its own."""
    extra = dict(given)
    if name != "lars":
        return {
            "optimizer": name,
            "lars": False,
            "exclude_bias_n_norm": False,
            "exclude_bias_n_norm_wd": exclude_bias_n_norm,
            "extra_optimizer_args": extra,
        }
    return {
        "optimizer": "sgd",
        "lars": True,
        "eta_lars": extra.pop("eta", 1e-3),
        "grad_clip_lars": extra.pop("clip_lr", False),
        "exclude_bias_n_norm": extra.pop("exclude_bias_n_norm", exclude_bias_n_norm),
        "extra_optimizer_args": extra,
    }


def callbacks(config: RunConfig, umap: bool = False) -> list[Any]:
    """solo-learn's checkpointer, and its UMAP callback if asked for.

    Raises:
        UserError: UMAP is asked for, and one of its packages is missing.
    """
    args = Namespace(**dataclasses.asdict(config))
    found = [checkpointer.Checkpointer(args, logdir=config.run_dir / "checkpoints")]
    if umap:
        if auto_umap is None:
            raise UserError(shared.UMAP_MISSING)
        found.append(auto_umap.AutoUMAP(args, logdir=config.run_dir / "umap"))
    return found


def fit_data(config: RunConfig) -> dict[str, Any]:
    """Keywords for `Trainer.fit`; see `wheel_data.fit_data`."""
    from solo_minent.host import wheel_data

    return wheel_data.fit_data(config)


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
    check_optimizer(linear_config.optimizer, ("sgd", "lars", "adam"))
    check_scheduler(linear_config.scheduler, LINEAR_SCHEDULERS)
    kwargs = _optimizer_keywords(linear_config.optimizer, linear_config.optimizer_kwargs, False)
    if kwargs.get("eta_lars", 1e-3) != 1e-3 or kwargs.get("grad_clip_lars"):
        raise UserError(
            "optimizer_kwargs are fixed in solo-learn 1.0.2's linear evaluation: eta, clip_lr. "
            "They are 0.001 and False there. Remove them."
        )
    module = probe_class(METHODS["linear"])(
        backbone,
        num_classes=linear_config.num_classes,
        max_epochs=linear_config.max_epochs,
        batch_size=linear_config.batch_size,
        lr=linear_config.lr,
        weight_decay=linear_config.weight_decay,
        scheduler=linear_config.scheduler,
        lr_decay_steps=list(linear_config.lr_decay_steps),
        **kwargs,
    )
    if classifier is None:
        classifier = nn.Linear(backbone.num_features, linear_config.num_classes)
    module.classifier, module.make_optimizer = classifier, make_optimizer
    return module
