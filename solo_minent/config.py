"""The run configuration: its schema, its checks, and how a recipe becomes one.

A recipe is a YAML file in `solo_minent/recipes` (or a file of the user's) composed by Hydra; an
override is Hydra syntax: `max_epochs=10`, `method_kwargs.heads=[128]`. Key names are those of
solo-learn's own YAML files where it has the key.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from solo_minent.errors import UserError

MISSING = "???"  # OmegaConf's mark of a mandatory value
RECIPES = Path(__file__).parent / "recipes"
OPTIMIZERS = ("sgd", "lars", "adam", "adamw")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
FORMATS = ("image_folder",)
OPEN = ("method_kwargs", "backbone.kwargs", "optimizer.kwargs")  # keys that a recipe may lack


@dataclass
class BackboneConfig:
    """name: `resnet18` (torchvision) or `timm:<model>`; stem: imagenet, cifar, small or solo."""

    name: str = MISSING
    stem: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """root: folder of the data set; train_images, val_images: seeded stratified subsets."""

    dataset: str = MISSING
    root: str | None = None
    format: str = "image_folder"
    num_workers: int = 2
    image_size: int = MISSING
    train_images: int | None = None
    val_images: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class OptimizerConfig:
    """lr: per 256 images if scale_lr, else absolute; batch_size: images per process and step."""

    name: str = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    scale_lr: bool = False
    classifier_lr: float = MISSING
    weight_decay: float = 0.0
    exclude_bias_n_norm: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class SchedulerConfig:
    """Learning rate over the run, see `solo_minent.schedules.lr_factor`; scales as lr does."""

    name: str = "warmup_cosine"
    interval: str = "step"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_start_lr: float = 0.0
    min_lr: float = 0.0
    lr_decay_epochs: list[int] = field(default_factory=list)
    gamma: float = 0.1
    restart_epoch: int | None = None
    restart_lr: float | None = None
    restart_warmup_epochs: float = 0.0


@dataclass
class LinearConfig:
    """Linear probe on cached features; defaults: MinEnt's protocol (Adam, exponential decay)."""

    max_epochs: int = 500
    batch_size: int = 1000
    lr: float = 1e-2
    final_lr: float = 1e-6
    weight_decay: float = 5e-6


@dataclass
class EvaluationConfig:
    """knn_every: epochs between two kNN evaluations while pretraining, 0 for none."""

    batch_size: int = 256
    knn_every: int = 10
    knn_k: int = 5
    linear: LinearConfig = field(default_factory=LinearConfig)


@dataclass
class RunConfig:
    """Everything that decides a pretraining run."""

    name: str = "default"
    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentations: list[Any] = field(default_factory=list)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    max_epochs: int = MISSING
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    sync_batchnorm: bool = True
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "auto"
    channels_last: bool = True
    seed: int = 0
    output_dir: str = "runs"
    folder: str | None = None
    checkpoint_every: int = 1

    @property
    def global_batch_size(self) -> int:
        """Images of one optimiser step over all ranks, nodes and accumulated batches."""
        return (
            self.optimizer.batch_size * self.devices * self.num_nodes * self.accumulate_grad_batches
        )

    @property
    def run_dir(self) -> Path:
        """Where the run's files go: `folder`, or output_dir/dataset/method/name."""
        if self.folder:
            return Path(self.folder)
        return Path(self.output_dir) / self.data.dataset / self.method / self.name


def recipes() -> list[str]:
    """Names of the recipes that come with the package, such as `cifar10/minent`."""
    files = sorted(RECIPES.glob("*/*.yaml"))
    names = [str(file.relative_to(RECIPES).with_suffix("")) for file in files]
    return [name for name in names if not name.startswith("defaults/")]


def load_recipe(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """Composes a recipe with overrides and checks everything that needs no data.

    Args:
        recipe: a name out of `recipes()`, or the path of a YAML file that may build on them
            (`defaults: [/cifar10/minent, _self_]`).
        overrides: Hydra overrides, `key=value`.

    Returns:
        The checked configuration, with every default of the method filled in.

    Raises:
        UserError: unknown recipe, key or value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder, name = _find_recipe(recipe)
    ConfigStore.instance().store(name="schema", node=RunConfig)
    search = f"hydra.searchpath=[file://{RECIPES}]"
    given = [f"++{line}" if line.startswith(OPEN) else line for line in overrides or []]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(name, overrides=[search, *given])
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(
                f"recipe {recipe} lacks values: {', '.join(missing)}. Every run needs them. "
                f"Add {missing[0]}=… to the command."
            )
        config = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides or [])) from error
    return check(config)


def check(config: RunConfig) -> RunConfig:
    """Checks a configuration and completes `method_kwargs` with the method's defaults.

    Raises:
        UserError: the first thing that is wrong.
    """
    from solo_minent.data.loaders import crop_counts
    from solo_minent.methods import available

    methods = available()
    if config.method not in methods:
        raise UserError(
            f"method is unknown: {config.method}. The methods are {', '.join(methods)}. "
            f"Set method={closest(config.method, methods)}."
        )
    method = methods[config.method]
    config = replace(config, method_kwargs=_method_kwargs(method, config.method_kwargs))
    _one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("data.format", config.data.format, FORMATS)
    for key, value, least in (
        ("max_epochs", config.max_epochs, 1),
        ("devices", config.devices, 1),
        ("num_nodes", config.num_nodes, 1),
        ("accumulate_grad_batches", config.accumulate_grad_batches, 1),
        ("checkpoint_every", config.checkpoint_every, 1),
        ("optimizer.batch_size", config.optimizer.batch_size, 2),
        ("data.num_workers", config.data.num_workers, 0),
        ("data.image_size", config.data.image_size, 8),
    ):
        if value < least:
            raise UserError(
                f"{key} is too small: {value}. It is at least {least}. Set {key}={least} or more."
            )
    num_large, num_small = crop_counts(config.augmentations)
    if num_large != 2 or (num_small and not method.multicrop):
        allowed = "two large crops and any small ones" if method.multicrop else "two large crops"
        raise UserError(
            f"augmentations do not suit {config.method}: {num_large} large and {num_small} small "
            f"crops. It takes {allowed}. Set num_crops in the augmentations of the recipe."
        )
    return config


def scaled_lrs(config: RunConfig) -> RunConfig:
    """The same run with absolute learning rates.

    With `optimizer.scale_lr` every rate of optimizer and scheduler, except the online classifier's,
    is multiplied by `global_batch_size / 256`.
    """
    if not config.optimizer.scale_lr:
        return config
    factor = config.global_batch_size / 256
    optimizer = replace(config.optimizer, lr=config.optimizer.lr * factor, scale_lr=False)
    scheduler = replace(
        config.scheduler,
        min_lr=config.scheduler.min_lr * factor,
        warmup_start_lr=config.scheduler.warmup_start_lr * factor,
        restart_lr=config.scheduler.restart_lr and config.scheduler.restart_lr * factor,
    )
    return replace(config, optimizer=optimizer, scheduler=scheduler)


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML, in the schema's order."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def load_run(folder: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a run folder.

    Args:
        folder: made by `solo_minent.pretrain.pretrain`; it may have been moved.
        overrides: `key=value`, for an evaluation with other data or settings.

    Raises:
        UserError: `config.yaml` is missing or is no configuration of ours, or an override is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"run configuration is missing: {path}. A run folder holds config.yaml. "
            "Name a folder that solo-minent pretrain made."
        )
    try:
        given = OmegaConf.from_dotlist(overrides or [])
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path), given)
        config = check(OmegaConf.to_object(merged))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(
            f"run configuration does not load: {path}, {_first_line(error)}. It must be what "
            "solo-minent pretrain wrote. Correct the override or restore the file."
        ) from error
    return replace(config, folder=str(folder))


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What differs between two runs, except where they are, as `key: old -> new` lines."""
    a, b = (_flatten(asdict(replace(c, output_dir="", folder=None))) for c in (old, new))
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def closest(word: str, words: Any) -> str:
    """The word that was probably meant."""
    words = list(words)
    return (difflib.get_close_matches(word, words, 1, 0.0) or words)[0]


def _find_recipe(recipe: str) -> tuple[Path, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(
                f"recipe file is missing: {recipe}. It was looked for in {path.parent.resolve()}. "
                "Name a YAML file, or a recipe such as digits/minent."
            )
        return path.resolve().parent, path.stem
    if recipe not in recipes():
        raise UserError(
            f"recipe is unknown: {recipe}. The recipes are {', '.join(recipes())}. "
            f"Use --recipe {closest(recipe, recipes())}."
        )
    return RECIPES, recipe


def _method_kwargs(method: type, given: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(method.Params), given)
        return asdict(OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        known = ", ".join(method.Params.__dataclass_fields__)
        raise UserError(
            f"method_kwargs do not suit {method.name}: {_first_line(error)}. It takes {known}. "
            "Correct method_kwargs in the recipe or the command."
        ) from error


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"{key} is unknown: {value}. It is one of {', '.join(allowed)}. "
            f"Set {key}={closest(value, allowed)}."
        )


def _explain(error: Exception, overrides: list[str]) -> str:
    """One line out of Hydra's several: what is wrong, and the key that was probably meant."""
    known = _flatten(asdict(RunConfig()))
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key and key in str(error) and key not in known and "=" in override:
            near = closest(key, known)
            return f"configuration key is unknown: {key}. The nearest is {near}. Write {near}=…"
        if "=" not in override:
            return f"override is not key=value: {override}. Write for example max_epochs=10."
    cause = error.__cause__ or error
    return f"configuration does not compose: {_first_line(cause)}. Correct the recipe or override."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if is_dataclass(tree):
        tree = asdict(tree)
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
