"""Everything about a configuration that can be found wrong without its data."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import asdict, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from solo_minent.allowed import (
    LARGEST,
    MAX_DIM,
    Range,
    check_one_of,
    check_range,
    check_ranges,
    is_huge,
    reason,
    short,
)
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import (
        DataConfig,
        DetectConfig,
        FinetuneConfig,
        LinearConfig,
        RunConfig,
    )

CHOICES = {
    "optimizer.name": ("sgd", "lars", "adam", "adamw"),
    "accelerator": ("auto", "cpu", "gpu", "cuda"),
    "precision": ("auto", "32-true", "64-true", "bf16-mixed", "16-mixed"),
    "data.format": ("image_folder", "dali", "h5", "device"),
    "data.on_corrupt": ("error", "skip"),
    "dali.device": ("auto", "cpu", "gpu"),
    "dali.pipeline": ("own", "solo"),
    "evaluation.precision": ("32", "tf32", "bf16-mixed", "16-mixed", "auto"),
    "evaluation.linear.optimizer": ("sgd", "adam", "adamw", "larc"),
    "evaluation.linear.scheduler": ("exponential", "cosine", "step"),
    "evaluation.linear.head_norm": ("none", "batchnorm"),
    "evaluation.linear.init": ("default", "normal"),
    "evaluation.linear.interpolation": ("bilinear", "bicubic"),
    "evaluation.finetune.optimizer": ("sgd", "adam", "adamw", "larc"),
    "evaluation.finetune.scheduler": ("cosine", "step"),
    "evaluation.finetune.head_norm": ("none", "batchnorm"),
    "evaluation.finetune.init": ("default", "normal"),
    "evaluation.finetune.interpolation": ("bilinear", "bicubic"),
    "evaluation.finetune.precision": ("32", "tf32", "bf16-mixed", "16-mixed", "auto"),
    "evaluation.detect.head": ("c4", "fpn"),
    "evaluation.detect.box_head": ("4conv1fc", "2fc"),
}
RANGES = {
    "max_epochs": Range(1, 100),
    "devices": Range(1, 1),
    "num_nodes": Range(1, 1),
    "accumulate_grad_batches": Range(1, 1),
    "checkpoint.every_epochs": Range(1, 1),
    "checkpoint.every_steps": Range(1, "null"),
    "checkpoint.every_minutes": Range(0, "null", above=True),
    "guard.skip": Range(0, 0),
    "process_timeout": Range(0, 30, high=1e6, above=True),
    "monitor_every": Range(0, 50),
    "gradient_clip_val": Range(0, "null", above=True),
    "late_epoch": Range(0, "null"),
    "seed": Range(0, 0, high=2**32 - 1),
    "data.num_workers": Range(0, 0),
    "data.image_size": Range(8, 32, high=4096),
    "data.train_images": Range(1, "null"),
    "data.val_images": Range(1, "null"),
    "optimizer.batch_size": Range(2, 128),
    "optimizer.lr": Range(0, 0.001, above=True),
    "optimizer.classifier_lr": Range(0, 0.001),
    "optimizer.weight_decay": Range(0, 0),
    "optimizer.weight_decay_end": Range(0, "null"),
    "scheduler.warmup_epochs": Range(0, 0, high=1e9),
    "scheduler.warmup_steps": Range(0, "null"),
    "scheduler.warmup_start_lr": Range(0, 0),
    "scheduler.min_lr": Range(0, 0),
    "scheduler.gamma": Range(0, 0.1, high=1, above=True),
    "scheduler.restart_epoch": Range(1, "null"),
    "scheduler.restart_lr": Range(0, 0.001, above=True),
    "scheduler.restart_warmup_epochs": Range(0, 0, high=1e9),
    "evaluation.batch_size": Range(1, 256),
    "evaluation.knn_every": Range(0, 10),
    "evaluation.knn_k": Range(1, 5),
    "evaluation.linear.max_epochs": Range(1, 500),
    "evaluation.linear.batch_size": Range(2, 1000),
    "evaluation.linear.momentum": Range(0, 0.9, high=1, below=True),
    "evaluation.linear.weight_decay": Range(0, 0),
    "evaluation.linear.lr": Range(0, 0.01, above=True),
    "evaluation.linear.final_lr": Range(0, 1e-6),
    "evaluation.linear.gamma": Range(0, 0.1, high=1, above=True),
    "evaluation.linear.resize": Range(224, 256),
    "evaluation.linear.blocks": Range(0, 0),
    "evaluation.linear.sweep_part": Range(0, 0.1, high=0.5, above=True),
    "evaluation.finetune.max_epochs": Range(1, 30),
    "evaluation.finetune.batch_size": Range(2, 256),
    "evaluation.finetune.momentum": Range(0, 0.9, high=1, below=True),
    "evaluation.finetune.weight_decay": Range(0, 0),
    "evaluation.finetune.lr": Range(0, 0.2, above=True),
    "evaluation.finetune.backbone_lr": Range(0, 0.01, above=True),
    "evaluation.finetune.gamma": Range(0, 0.1, high=1, above=True),
    "evaluation.finetune.backbone_gamma": Range(0, 0.1, high=1, above=True),
    "evaluation.finetune.resize": Range(224, 256),
    "evaluation.detect.steps": Range(1, 24000),
    "evaluation.detect.batch_size": Range(1, 16),
    "evaluation.detect.lr": Range(0, 0.02, above=True),
    "evaluation.detect.momentum": Range(0, 0.9, high=1, below=True),
    "evaluation.detect.weight_decay": Range(0, 0.0001),
    "evaluation.detect.weight_decay_norm": Range(0, 0),
    "evaluation.detect.warmup_steps": Range(0, 100),
    "evaluation.detect.warmup_factor": Range(0, 0.001, high=1),
    "evaluation.detect.gamma": Range(0, 0.1, high=1, above=True),
    "evaluation.detect.max_size": Range(32, 1333),
    "evaluation.detect.test_size": Range(32, 800),
    "evaluation.detect.precise_bn": Range(0, 200),
    "evaluation.detect.checkpoint_every": Range(1, 1000),
}
OWN_KEYS = ("lr", "weight_decay")  # of an optimiser, that the configuration has elsewhere


def check(config: RunConfig) -> RunConfig:
    """Checks a configuration and completes `method_kwargs` with the method's defaults.

    Raises:
        UserError: the first thing that is wrong.
    """
    from solo_minent.data.datasets import check_dataset
    from solo_minent.methods import available
    from solo_minent.schedules import lr_factor

    methods = available()
    check_one_of("method", config.method, methods)
    method = methods[config.method]
    config = replace(config, method_kwargs=_method_kwargs(method, config.method_kwargs))
    for key, allowed in CHOICES.items():
        check_one_of(key, attrgetter(key)(config), allowed)
    check_ranges(config, RANGES)
    check_training("evaluation.linear", config.evaluation.linear)
    check_training("evaluation.finetune", config.evaluation.finetune)
    _check_detect(config.evaluation.detect)
    _check_name(config.name)
    _check_paths(config)
    check_dataset(config.data.dataset)
    _check_normalization(config.data)
    if config.optimizer.weight_decay_end is not None and not config.optimizer.weight_decay:
        raise UserError(
            f"optimizer.weight_decay_end has no start: {config.optimizer.weight_decay_end}, with "
            "weight_decay 0. What decays at all goes from one to the other. "
            "Set optimizer.weight_decay."
        )
    _check_optimizer_kwargs(config.optimizer.name, config.optimizer.kwargs)
    _check_scaled_lr(config)
    _check_sizes("backbone.kwargs", config.backbone.kwargs)
    for key in config.backbone.kwargs.keys() & {"name", "stem"}:
        raise UserError(
            f"backbone.kwargs.{key} is set elsewhere: {config.backbone.kwargs[key]}. "
            f"backbone.kwargs holds the model's own arguments. Set backbone.{key} instead."
        )
    lr_factor(config.scheduler, config.optimizer.lr, 1, config.max_epochs)  # checks the scheduler
    _check_augmentations(config, method)
    method.check_batch(
        config.method_kwargs, config.optimizer.batch_size, config.devices * config.num_nodes
    )
    return config


def check_training(prefix: str, settings: LinearConfig | FinetuneConfig) -> None:
    """Checks what no single range says of a linear evaluation or a fine-tuning.

    Args:
        prefix: where it stands in the configuration, such as `evaluation.linear`.
        settings: its values.

    Raises:
        UserError: the first thing that is wrong.
    """
    scale = settings.crop_scale
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"{prefix}.crop_scale is no range of shares: {scale}. It is the smallest and the "
            f"largest share of an image in a crop. Set {prefix}.crop_scale=[0.08,1.0]."
        )
    for epoch in settings.lr_decay_epochs:
        check_range(f"{prefix}.lr_decay_epochs", epoch, Range(1, "[]"))
    for rate in getattr(settings, "sweep", ()):
        check_range(f"{prefix}.sweep", rate, Range(0, "[]", above=True))
    if settings.scheduler == "exponential" and not settings.final_lr:
        raise UserError(
            f"{prefix}.final_lr is no end of an exponential: {settings.final_lr}. It is above 0 "
            f"there. Set {prefix}.final_lr=1e-6, or {prefix}.scheduler=cosine."
        )


def _check_detect(settings: DetectConfig) -> None:
    key = "evaluation.detect"
    if not settings.min_sizes:
        raise UserError(
            f"{key}.min_sizes are none: []. One short side is drawn for each image. "
            f"Set {key}.min_sizes=[800]."
        )
    for size in settings.min_sizes:
        check_range(f"{key}.min_sizes", size, Range(32, "[800]", high=settings.max_size))
    for step in settings.lr_steps:
        check_range(f"{key}.lr_steps", step, Range(1, "[]"))


def _method_kwargs(method: type, given: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(method.Params), given)
        return asdict(OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        known = ", ".join(method.Params.__dataclass_fields__)
        raise UserError(
            f"method_kwargs do not suit {method.name}: {reason(error)}. It takes {known}. "
            "Correct method_kwargs in the recipe or the command."
        ) from error


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or name in (".", ".."):
        raise UserError(
            f"name is no folder name: {name!r}. It is made of letters, digits, '.', '_' and '-', "
            "at most 200 of them. Set name=default, and output_dir or folder for another place."
        )


def _check_paths(config: RunConfig) -> None:
    for key in ("data.root", "data.file_list", "output_dir", "folder"):
        path = attrgetter(key)(config)
        if path is None:
            continue
        written = key in ("output_dir", "folder")
        if "\0" in path or (written and _undecoded(path)):
            raise UserError(
                f"{key} is no path: {short(path)}. It holds neither a NUL nor bytes that are no "
                f"UTF-8. Correct {key}=…"
            )


def _undecoded(path: str) -> bool:
    """Whether it has bytes that no terminal and no file of a run could show."""
    return any("\ud800" <= letter <= "\udfff" for letter in path)


def _check_scaled_lr(config: RunConfig) -> None:
    factor = config.global_batch_size / 256 if config.optimizer.scale_lr else 1.0
    for key in ("optimizer.lr", "scheduler.restart_lr"):
        rate = attrgetter(key)(config)
        if rate is not None and not 0 < rate * factor <= LARGEST:
            raise UserError(
                f"{key} is out of range: {rate * factor}, scaled by {factor}. It is above 0 and "
                f"not beyond {LARGEST:g}. Set {key}=0.001."
            )


def _check_sizes(key: str, value: Any) -> None:
    """No argument of a network is that large; building one would take for ever, or all memory."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_sizes(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_sizes(key, inner)
    elif isinstance(value, (int, float)):
        check_range(key, value, Range(-MAX_DIM, 1, high=MAX_DIM))


def _check_normalization(data: DataConfig) -> None:
    for key, allowed in (("mean", Range(-math.inf, 0.5)), ("std", Range(0, 0.25, above=True))):
        values = getattr(data, key)
        if values is None:
            continue
        if len(values) != 3:
            raise UserError(
                f"data.{key} is not one number a channel: {values}. It has three, for pixels in "
                f"[0, 1]. Set data.{key}=null for the data set's own."
            )
        for value in values:
            if not allowed.holds(value):
                raise UserError(
                    f"data.{key} is out of range: {values}. Its numbers are finite"
                    f"{' and positive' if allowed.above else ''}. "
                    f"Set data.{key}=null for the data set's own."
                )


def _check_optimizer_kwargs(name: str, kwargs: dict[str, Any]) -> None:
    """Tries the keywords on torch's own optimiser, which LARS is a scaling of."""
    if not kwargs:
        return
    import torch

    from solo_minent.host.optimizers import with_fused

    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(name, torch.optim.SGD)
    own = [key for key in inspect.signature(kind).parameters if key not in ("params", *OWN_KEYS)]
    lars: list[str] = []
    if name == "lars":
        own = ["momentum", "dampening", "nesterov"]
        lars = ["eta", "clip_lr", "exclude_bias_n_norm"]
    for key, value in kwargs.items():
        if key not in own + lars:
            elsewhere = f" optimizer.{key} is a key of its own." if key in OWN_KEYS else ""
            raise UserError(
                f"optimizer.kwargs do not suit {name}: {key}. It takes {', '.join(own + lars)}."
                f"{elsewhere} Remove it with ~optimizer.kwargs.{key}."
            )
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(
                    f"optimizer.kwargs.{key} is not finite: {value}. Numbers are. "
                    f"Remove it with ~optimizer.kwargs.{key}."
                )
            if is_huge(number):
                check_range(f"optimizer.kwargs.{key}", number, Range(-LARGEST, 0))
    if "eta" in kwargs:
        check_range("optimizer.kwargs.eta", kwargs["eta"], Range(0, 0.001, above=True))
    for key in ("clip_lr", "exclude_bias_n_norm"):
        if not isinstance(kwargs.get(key, False), bool):
            raise UserError(
                f"optimizer.kwargs.{key} is neither true nor false: {short(kwargs[key])}. "
                f"It is one of them. Set optimizer.kwargs.{key}=true."
            )
    try:
        given = {key: value for key, value in kwargs.items() if key in own}
        weight = torch.zeros(1, requires_grad=True)
        optimizer = kind([weight], lr=1.0, weight_decay=0.1, **with_fused(name, given))
        for _ in range(2):  # what a constructor takes, a step may not
            weight.grad = torch.ones(1)
            optimizer.step()
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"optimizer.kwargs do not suit {name}: {kwargs}, {reason(error)}. They are those of "
            f"torch.optim.{kind.__name__}. Correct optimizer.kwargs."
        ) from error


def _check_augmentations(config: RunConfig, method: type) -> None:
    if (config.late_epoch is None) == bool(config.late_augmentations):
        raise UserError(
            f"late_epoch and late_augmentations belong together: {config.late_epoch} and "
            f"{len(config.late_augmentations)} entries. Both are set, or neither. "
            "Set late_epoch=null late_augmentations=[]."
        )
    counts = _check_stage(config, method, "augmentations")
    if config.late_epoch is None:
        return
    late = _check_stage(config, method, "late_augmentations")
    if late != counts:
        raise UserError(
            f"late_augmentations make other views: {late} large and small crops, the augmentations "
            f"{counts}. The number of views is that of the whole run. Set num_crops in "
            "late_augmentations."
        )


def _check_stage(config: RunConfig, method: type, key: str) -> tuple[int, int]:
    """Numbers of large and small crops."""
    from solo_minent.data.augmentations import crop_counts, parse_views

    size = config.data.image_size
    views = parse_views(getattr(config, key), size)
    num_large, num_small = crop_counts(views)
    if views[0].size != size:
        raise UserError(
            f"{key} are not of the image size: crop_size {views[0].size}, data.image_size {size}. "
            f"The first views are as large as the images. Set data.image_size={views[0].size} or "
            f"{key}.0.crop_size={size}."
        )
    if num_large != 2 or (num_small and not method.multicrop):
        allowed = "two large crops and any small ones" if method.multicrop else "two large crops"
        raise UserError(
            f"{key} do not suit {config.method}: {num_large} large and {num_small} small "
            f"crops. It takes {allowed}. Set num_crops in the augmentations of the recipe."
        )
    return num_large, num_small
