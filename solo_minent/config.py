"""The run configuration: how a recipe becomes one, with overrides and clear errors.

A recipe is a YAML file in `solo_minent/recipes` (or a file of the user's) composed by Hydra; an
override is Hydra syntax: `max_epochs=10`, `method_kwargs.heads=[128]`. `solo_minent.schema` has the
keys.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.allowed import closest, reason
from solo_minent.checks import check
from solo_minent.errors import UserError
from solo_minent.schema import RunConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECIPES = Path(__file__).parent / "recipes"
# What a recipe need not have for an override to set it.
OPEN = (
    "method_kwargs",
    "backbone.kwargs",
    "optimizer.kwargs",
    "augmentations.",
    "late_augmentations.",
)
# Where a run lies, how fast its images come, how it is evaluated: its weights are the same.
BYSTANDERS = (
    "output_dir",
    "folder",
    "checkpoint.",
    "guard.",
    "process_timeout",
    "monitor_every",
    "data.root",
    "data.num_workers",
    "data.on_corrupt",
    "data.val_images",
    "evaluation.",
)


# Where a run's folder lies, and what only the evaluations after it look at: what may differ when it
# continues.
ELSEWHERE = (
    "output_dir",
    "folder",
    "evaluation.cache_features",
    "evaluation.linear.",
    "evaluation.finetune.",
    "evaluation.detect.",
)


PATHS = ("data.root", "data.file_list", "output_dir", "folder")


def recipes() -> list[str]:
    """Names of the recipes that come with the package, such as `cifar10/minent`."""
    files = sorted(RECIPES.glob("*/*.yaml"))
    names = [str(file.relative_to(RECIPES).with_suffix("")) for file in files]
    return [name for name in names if not name.startswith("defaults/")]


def protocols(kind: str) -> list[str]:
    """Names of the evaluation protocols of a kind (linear, finetune, detect) in the package."""
    return sorted(file.stem for file in (RECIPES / "protocols" / kind).glob("*.yaml"))


def protocol(kind: str, name: str) -> list[str]:
    """The overrides that set `evaluation.<kind>` to a protocol of the package.

    Put those of the user behind them: `load_run(folder, [*protocol("linear", "mec"), *overrides])`.

    Raises:
        UserError: there is no such protocol.
    """
    from omegaconf import OmegaConf

    if name not in protocols(kind):
        raise UserError(
            f"protocol of {kind} is unknown: {name}. They are {', '.join(protocols(kind))}. "
            f"Use --protocol {closest(name, protocols(kind))}."
        )
    values = OmegaConf.to_container(OmegaConf.load(RECIPES / "protocols" / kind / f"{name}.yaml"))
    lines = {"name": name, **values}
    return [f"evaluation.{kind}.{key}={json.dumps(value)}" for key, value in lines.items()]


def load_recipe(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """Composes a recipe with overrides and checks everything that needs no data.

    Args:
        recipe: a name out of `recipes()`, or the path of a YAML file that may build on them
            (`defaults: [/cifar10/minent, _self_]`).
        overrides: Hydra overrides, `key=value` or `~key`.

    Returns:
        The checked configuration, with every default of the method filled in.

    Raises:
        UserError: unknown recipe, key or value, or a file that is no recipe.
    """
    folder, name = _find_recipe(recipe)
    return check(_compose(folder, name, overrides or [], f"recipe {recipe}"))


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
        overrides: as for a recipe, for an evaluation with other data or settings.

    Raises:
        UserError: `config.yaml` is missing or is no configuration of ours, or an override is wrong.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"run configuration is missing: {path}. A run folder holds config.yaml. "
            "Name a folder that solo-minent pretrain made."
        )
    config = check(_compose(folder.resolve(), "config", overrides or [], f"configuration {path}"))
    return replace(config, folder=str(folder))


def check_writable(config: RunConfig) -> None:
    """Checks that the run's folder can be made or written, and makes nothing.

    Raises:
        UserError: a file is in the way, or the nearest folder that exists cannot be written.
    """
    what = unwritable(config.run_dir)
    if what:
        raise UserError(
            f"run folder cannot be made: {config.run_dir}, {what}. It needs a folder that you may "
            "write to. Set output_dir=runs, or folder=… to a place of your own."
        )


def unwritable(folder: Path) -> str | None:
    """Why a folder can be neither made nor written, in words; None if it can."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    if nearest.resolve().parts[1:2] in (("proc",), ("sys",)):  # root has every right there
        return f"{nearest} belongs to the system"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written"


def from_dict(values: dict[str, Any], source: str) -> RunConfig:
    """The configuration that `asdict` made these values of, typed but not checked.

    Raises:
        UserError: they are no configuration of ours; `source` is what the message blames.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), values))
    except OmegaConfBaseException as error:
        raise UserError(
            f"{source} has another configuration: {reason(error)}. It must have the keys of a run "
            "of this version. Start a new run with another name=…"
        ) from error


def differences(
    old: RunConfig, new: RunConfig, leave_out: tuple[str, ...] = BYSTANDERS
) -> list[str]:
    """What differs between two configurations, as `key: old -> new`.

    Args:
        old: one of them.
        new: the other.
        leave_out: beginnings of keys; by default what does not change the weights of a run.
    """
    a, b = _flatten(asdict(old)), _flatten(asdict(new))
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not key.startswith(leave_out)
    ]


def _find_recipe(recipe: str) -> tuple[Path, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(
                f"recipe file is missing: {recipe}. It was looked for in {path.parent.resolve()}. "
                "Name a YAML file, or a recipe such as digits/minent."
            )
        if path.suffix == ".yml":
            raise UserError(
                f"recipe file has another ending: {recipe}. Hydra reads .yaml. "
                f"Rename it: mv {recipe} {path.with_suffix('.yaml')}"
            )
        return path.resolve().parent, path.stem
    if recipe not in recipes():
        raise UserError(
            f"recipe is unknown: {recipe}. The recipes are {', '.join(recipes())}. "
            f"Use --recipe {closest(recipe, recipes())}."
        )
    return RECIPES, recipe


def _compose(folder: Path, name: str, overrides: list[str], source: str) -> RunConfig:
    """The file `name` of a folder with overrides, typed but not checked.

    Raises:
        UserError: it does not compose, or values are missing; `source` is what the message blames.
    """
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for override in overrides:
        key, equals, _ = override.partition("=")
        if not key.strip("+~ ") or not (equals or override.startswith("~")):
            raise UserError(
                f"override is not key=value: {override}. Write for example max_epochs=10, or ~key "
                "to remove a key."
            )
    ConfigStore.instance().store(name="schema", node=RunConfig)
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            config = _merged(name, overrides)
        except Exception as error:  # Hydra raises ValueError, OSError and YAML's among others
            raise UserError(_explain(error, name, overrides, source)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(
            f"{source} lacks values: {', '.join(missing)}. Every run needs them. "
            f"Add {missing[0]}=… to the command."
        )
    return OmegaConf.to_object(config)


def _merged(name: str, overrides: list[str]) -> DictConfig:
    from hydra import compose
    from omegaconf import OmegaConf

    search = f"hydra.searchpath=['file://{RECIPES}']"
    given = [_quoted(f"++{line}" if line.startswith(OPEN) else line) for line in overrides]
    composed = compose(name, overrides=[search, *given])
    # Refuses keys beyond the schema, which `+key=value` or a recipe without /schema can bring in.
    plain = OmegaConf.to_container(composed, resolve=True)
    return OmegaConf.merge(OmegaConf.structured(RunConfig), plain)


def _quoted(override: str) -> str:
    """A path in quotes, where it has letters that mean something in Hydra's syntax."""
    key, _, value = override.partition("=")
    if key not in PATHS or not value or re.fullmatch(r"[\w./~-]+|'.*'|\".*\"", value, re.ASCII):
        return override
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _explain(error: Exception, name: str, overrides: list[str], source: str) -> str:
    """What is wrong with the first override that does not compose, or else with the file."""
    for count in range(len(overrides) + 1):
        try:
            _merged(name, overrides[:count])
        except Exception as first:
            if count == 0:
                return (
                    f"{source} does not load: {reason(first)}. It must be YAML with the keys of a "
                    "run. Correct or restore the file."
                )
            return _explain_override(overrides[count - 1], first)
    return f"{source} does not load: {reason(error)}. Correct the overrides."


def _explain_override(override: str, error: Exception) -> str:
    known = _flatten(asdict(RunConfig()))
    key, _, value = override.partition("=")
    key = key.lstrip("+~").strip()
    if key.startswith(OPEN) or key in known:
        if override.startswith("~"):
            return f"key cannot be removed: {key}. {reason(error)}. Leave {override} out."
        return f"{key} has a wrong value: {value}. {reason(error)}. Correct {key}=…"
    below = [other for other in known if other.startswith(f"{key}.")]
    if below:
        return f"{key} is a group of keys: {value}. It holds {', '.join(below)}. Set {below[0]}=…"
    near = closest(key, known)
    fix = f"Leave {override} out." if override.startswith("~") else f"Write {near}=…"
    return f"configuration key is unknown: {key}. The nearest is {near}. {fix}"


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if is_dataclass(tree):
        tree = asdict(tree)
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
