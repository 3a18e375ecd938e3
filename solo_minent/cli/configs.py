"""The runs that a command names, as configurations."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig


def one_config(options: argparse.Namespace, kind: str | None = None) -> RunConfig:
    """The run that a command names: by its folder, or by recipe and overrides.

    Args:
        options: with `recipe` and `words`.
        kind: of evaluation, for a command with `--protocol`.

    Raises:
        UserError: it names none, or more than one.
    """
    configs = all_configs(options, kind)
    if len(configs) > 1:
        raise UserError(
            f"runs are more than one: {' '.join(options.words)}. This command takes one. Name one "
            "run folder, or use --recipe."
        )
    return configs[0]


def all_configs(
    options: argparse.Namespace, kind: str | None = None, below: bool = False
) -> list[RunConfig]:
    """The runs that a command names, as `one_config`; with `below` also those below a folder."""
    from solo_minent.config import load_recipe, load_run, protocol

    overrides = [word for word in options.words if "=" in word or word.startswith("~")]
    folders = [word for word in options.words if word not in overrides]
    if kind is not None and options.protocol is not None:
        overrides = [*protocol(kind, options.protocol), *overrides]
    if options.recipe and not folders:
        return [load_recipe(options.recipe, overrides)]
    if not folders or options.recipe:
        raise UserError(
            f"run is not named: {' '.join(options.words) or 'no arguments'}. Either a recipe or "
            "a run folder is needed. Add --recipe digits/minent."
        )
    if below:
        from solo_minent.report import find_runs

        folders = find_runs(folders)
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(
                f"run folder is missing: {folder}. A folder that solo-minent pretrain made was "
                "expected. Name it, or use --recipe."
            )
    return [load_run(folder, overrides) for folder in folders]
