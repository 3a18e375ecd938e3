"""The part of a method's LightningModule that is the same on both versions of solo-learn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from solo_minent.errors import UserError
from solo_minent.host.optimizers import give_buffers, place_state, with_fused
from solo_minent.meter import Meter
from solo_minent.methods.base import Progress, SSLMethod
from solo_minent.training.copies import beside_computing

OPTIMIZERS = ("sgd", "lars", "adam", "adamw")


class MethodModule:
    """Goes in front of a method and solo-learn's `BaseMethod`, which does what it always does.

    Attributes:
        method_class: the method as it was written, without a host.
        partly_labelled: training images may have no label (target -1).
        meter: takes what is logged, in place of Lightning, if set.
        terms: what the last training step logged, by name: scalars, without gradient.
        update_refused: the step under way shall not change the weights, nor the teacher's.
        fused: torch's optimisers compute by their fused kernels, unless their keywords say else.
    """

    method_class: ClassVar[type[SSLMethod]]
    partly_labelled: bool = False
    meter: Meter | None = None
    update_refused: bool = False
    fused: bool = False
    lr_factor: Callable[[int], float] | None = None

    def _finish(
        self,
        params: Any,
        backbone: nn.Module | None,
        lr_factor: Callable[[int], float] | None,
    ) -> None:
        """After solo-learn's constructor: our backbone in its place, then the method's heads."""
        self.lr_factor = lr_factor
        if backbone is not None:
            self._set_backbone(backbone)
            self.features_dim = backbone.num_features
            self.classifier = nn.Linear(self.features_dim, self.num_classes)
        self.setup_method(params)

    # Training.

    def on_train_start(self) -> None:
        super().on_train_start()
        total_steps = self.trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise UserError(
                f"run has no end: max_epochs={self.trainer.max_epochs}. Schedules need to know the "
                "number of steps. Give the Trainer max_epochs, and a loader that has a length."
            )
        self._total_steps = int(total_steps)
        if self.lr_factor is not None:
            self._use_own_settings()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Lightning's, beside what the device computes."""
        return beside_computing(
            lambda: super(MethodModule, self).transfer_batch_to_device(batch, device, index), device
        )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The method's loss plus that of solo-learn's online classifier (on detached features).

        Args:
            batch: `[indexes, [view, …], targets]`; a view is (B, 3, H, W), targets are (B,).
            batch_idx: index of the batch.

        Returns:
            The sum, a scalar of the classifier's dtype.
        """
        out = super().training_step(batch, batch_idx)
        views = batch[1]
        crops = [views] if isinstance(views, Tensor) else list(views)
        progress = self._progress(self.trainer.global_step)
        terms = self.ssl_step(crops, out["feats"], progress)
        class_loss = out["loss"]
        logged = {f"train_{self.name}_{term}": value for term, value in terms.items()}
        self.terms = {"train_class_loss": class_loss.detach()}
        self.terms |= {name: value.detach() for name, value in logged.items()}
        if self.teacher:
            logged["tau"] = self.teacher_momentum(progress)
        self.log_dict(logged, on_epoch=True, sync_dist=True)
        return terms["loss"].to(class_loss.dtype) + class_loss

    def _base_shared_step(self, X: Tensor, targets: Tensor) -> dict[str, Any]:
        """solo-learn's; loss and accuracy are over the images with a label, 0 if there are none.

        solo-learn's loss is not a number then, and it counts an image without a label as wrong.
        """
        out = super()._base_shared_step(X, targets)
        if self.partly_labelled and self.training:
            labelled = targets >= 0
            count = labelled.sum().clamp(min=1)
            losses = F.cross_entropy(out["logits"], targets.clamp(min=0), reduction="none")
            out["loss"] = (losses * labelled).sum() / count
            for name in ("acc1", "acc5"):
                out[name] = out[name] * len(targets) / count
        return out

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One update of the weights, after which the teacher follows.

        It follows as well where a loss scale (16-mixed) has left the weights as they were.
        """
        super().optimizer_step(*args, **kwargs)
        refused, self.update_refused = self.update_refused, False
        if self.teacher and not refused:
            self.update_teacher(self._progress(self.trainer.global_step))

    # What is logged.

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Lightning's; or into `meter`: there, a result of validation weighs its images."""
        if self.meter is None:
            super().log_dict(dictionary, *args, **kwargs)
        else:
            validating = self.trainer.validating
            self.meter.add(dictionary, self._validated if validating else 1)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As `log_dict`."""
        if self.meter is None:
            super().log(name, value, *args, **kwargs)
        else:
            self.log_dict({name: value})

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validated = 0

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        self._validated += len(batch[1])
        return super().validation_step(batch, batch_idx)

    def _progress(self, step: int) -> Progress:
        total_epochs = self.trainer.max_epochs
        if total_epochs is None or total_epochs < 1:  # the Trainer was given max_steps
            total_epochs = self.max_epochs
        return Progress(step, self._total_steps, self.trainer.current_epoch, total_epochs)

    # Optimisation.

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """Optimiser groups: backbone, online classifier, and the method's own.

        Where biases and norms get no weight decay, neither do the backbone's `no_weight_decay()`
        (timm: position embedding and class token).
        """
        groups = super().learnable_params + self.extra_params()
        if not self.exclude_bias_n_norm_wd or not hasattr(self.backbone, "no_weight_decay"):
            return groups
        spared = {self.backbone.get_parameter(name) for name in self._spared_names()}
        rest = [{**g, "params": [p for p in g["params"] if p not in spared]} for g in groups]
        return [*rest, {"name": "embeddings", "params": list(spared), "weight_decay": 0}]

    def _spared_names(self) -> list[str]:
        names = dict(self.backbone.named_parameters())
        return sorted(name for name in self.backbone.no_weight_decay() if name in names)

    def configure_optimizers(self) -> Any:
        """solo-learn's optimiser, with solo-learn's scheduler or with `lr_factor` every step."""
        if self.lr_factor is None:
            return super().configure_optimizers()
        optimizer = self._optimizer()
        self._settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        factor = self.lr_factor
        # A plain function is not put into the scheduler's state_dict; other callables are.
        scheduler = LambdaLR(optimizer, lambda step: factor(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _optimizer(self) -> Optimizer:
        """solo-learn's, without a scheduler."""
        if self.fused:
            given = self.extra_optimizer_args
            self.extra_optimizer_args = with_fused(self.optimizer, given)
        optimizer = super().configure_optimizers()
        if isinstance(optimizer, SGD):
            optimizer.register_step_pre_hook(give_buffers)
        return optimizer

    def _use_own_settings(self) -> None:
        """Rates and decays of this run, where a checkpoint of another one brought its own."""
        scheduler = self.lr_schedulers()
        scheduler.base_lrs = [own["lr"] for own in self._settings]
        factor = self.lr_factor(scheduler.last_epoch)
        for group, own in zip(scheduler.optimizer.param_groups, self._settings, strict=True):
            group |= {**own, "initial_lr": own["lr"], "lr": own["lr"] * factor}
        place_state(scheduler.optimizer)


def adapted_class(
    method: type[SSLMethod], host_module: type, base: type, namespace: dict[str, Any]
) -> type:
    """Class of `host_module` (a MethodModule), `method` and solo-learn's `base`, in this order."""
    return type(
        method.__name__,
        (host_module, method, base),
        {"__doc__": method.__doc__, "__module__": method.__module__, "method_class": method}
        | namespace,
    )


def put_into(methods: dict[str, type], method: type[SSLMethod], adapted: type) -> type:
    """`methods[name] = adapted`, unless something else has this name.

    Raises:
        UserError: the name belongs to another method.
    """
    there = methods.setdefault(method.name, adapted)
    if there is not adapted:
        raise UserError(
            f"method name is taken in solo.methods.METHODS: {method.name} is "
            f"{there.__module__}.{there.__qualname__}. Each name belongs to one method. "
            f"Rename the attribute `name` of {method.__module__}.{method.__qualname__}."
        )
    return adapted


def find_method(methods: Mapping[str, type], name: str) -> type:
    """The adapted method of this name in solo-learn's table.

    Raises:
        UserError: there is none.
    """
    found = methods.get(name)
    if found is None or not issubclass(found, MethodModule):
        ours = sorted(n for n, cls in methods.items() if issubclass(cls, MethodModule))
        raise UserError(
            f"method is not registered: {name}. Registered are {', '.join(ours) or 'none'}. "
            "Call solo_minent.register() first."
        )
    return found


def make_params(method: type[SSLMethod], values: Mapping[str, Any]) -> Any:
    """The method's `Params` from plain values or a DictConfig; absent ones take their default.

    Raises:
        UserError: an unknown key, a value of the wrong type, or one that `Params` refuses.
    """
    known = [field.name for field in dataclasses.fields(method.Params)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(
            f"method_kwargs of {method.name} has an unknown key: {', '.join(unknown)}. "
            f"It takes {', '.join(known)}. Remove or correct the key."
        )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(method.Params), values))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"method_kwargs of {method.name} has a wrong value: {reason}. "
            f"The types are those of {method.Params.__qualname__}. Correct the value."
        ) from error


def check_backbone(backbone: nn.Module) -> None:
    """Refuses a backbone that does not say how many features it gives."""
    if not isinstance(getattr(backbone, "num_features", None), int):
        raise UserError(
            f"backbone has no integer num_features: {type(backbone).__name__}. It is the number of "
            "features of an image. Set backbone.num_features."
        )


def check_optimizer(name: str, allowed: Sequence[str] = OPTIMIZERS) -> None:
    """Refuses an optimiser that solo-learn does not have."""
    if name not in allowed:
        raise UserError(
            f"optimizer is unknown to solo-learn: {name}. It is one of {', '.join(allowed)}. "
            f"Set optimizer.name={allowed[0]}."
        )


def check_scheduler(name: str, allowed: Sequence[str]) -> None:
    """Refuses a scheduler that the installed solo-learn does not have."""
    if name not in allowed:
        raise UserError(
            f"scheduler is unknown to this solo-learn: {name}. It is one of {', '.join(allowed)}. "
            f"Set scheduler.name={allowed[0]}, or give lr_factor."
        )


def without_weight_decay(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Splits each optimiser group: biases and norms (one dimension or none) get no decay."""
    split = []
    for group in groups:
        params = list(group["params"])
        decayed = [p for p in params if p.ndim > 1]
        rest = [p for p in params if p.ndim <= 1]
        if decayed:
            split.append({**group, "params": decayed})
        if rest:
            name = {"name": f"{group['name']}_no_decay"} if "name" in group else {}
            split.append({**group, **name, "params": rest, "weight_decay": 0})
    return split


def backbone_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights out of a method's, under the backbone's own names.

    Args:
        state_dict: of a method's module on either version of solo-learn, where the backbone's
            names begin with `encoder.` (wheel) or `backbone.` (source).

    Raises:
        UserError: there is no backbone in it.
    """
    for prefix in ("backbone.", "encoder."):
        state = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if state:
            return state
    raise UserError(
        f"state_dict has no backbone: {len(state_dict)} entries, none begins with backbone. or "
        "encoder. as solo-learn's do. Pass the state_dict of a pretraining checkpoint."
    )


def rng_untouched() -> Any:
    """Context in which random numbers may be drawn that the run does not notice (CPU only)."""
    return torch.random.fork_rng(devices=[])
