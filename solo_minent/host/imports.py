"""What has to be in place while solo-learn is imported, and is gone afterwards.

solo-learn binds the names it imports for good, so a stand-in module is needed in `sys.modules`
only during its import; nothing else in the process ever sees it.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from solo_minent.errors import UserError
from solo_minent.host.registry import during_import
from solo_minent.host.schedulers import LinearWarmupCosineAnnealingLR


@contextlib.contextmanager
def _in_place_of(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Puts modules into `sys.modules`, and what was there back at the end."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(content)
    return module


@during_import
def pl_bolts() -> contextlib.AbstractContextManager[None]:
    """Our own warm-up schedule in place of the one in lightning-bolts.

    `import solo` raised "No module named 'pl_bolts'"; lightning-bolts needs lightning 1.x and has
    had no release since 2022. solo-learn 1.0.2; may go with it.
    """
    schedule = LinearWarmupCosineAnnealingLR
    return _in_place_of(
        {
            "pl_bolts": _module("pl_bolts"),
            "pl_bolts.optimizers": _module("pl_bolts.optimizers"),
            "pl_bolts.optimizers.lr_scheduler": _module(
                "pl_bolts.optimizers.lr_scheduler", LinearWarmupCosineAnnealingLR=schedule
            ),
        }
    )


@during_import
def distutils() -> contextlib.AbstractContextManager[None]:
    """`distutils.util.strtobool`, the one function that DINO's arguments use.

    `import solo` raises "No module named 'distutils'" since Python 3.12, and before it
    `distutils.util` is there only if something else imported it. solo-learn 1.0.2; may go with it.
    """

    def strtobool(text: str) -> int:
        if text.lower() in ("y", "yes", "t", "true", "on", "1"):
            return 1
        if text.lower() in ("n", "no", "f", "false", "off", "0"):
            return 0
        raise ValueError(f"invalid truth value {text!r}")

    util = _module("distutils.util", strtobool=strtobool)
    return _in_place_of({"distutils": _module("distutils", util=util), "distutils.util": util})


@during_import
@contextlib.contextmanager
def lightning_pytorch() -> Iterator[None]:
    """solo-learn 1.0.2 gets `lightning.pytorch` under its old name `pytorch_lightning`.

    Since lightning 2.0 both packages exist, with the same code and different classes: a module
    made by one is refused by the Trainer of the other. solo-learn 1.0.2; may go with it.
    """
    import lightning.pytorch as pl
    import lightning.pytorch.callbacks as pl_callbacks
    import lightning.pytorch.loggers as pl_loggers

    names = {"": pl, ".callbacks": pl_callbacks, ".loggers": pl_loggers}
    with _in_place_of({f"pytorch_lightning{end}": module for end, module in names.items()}):
        yield


@during_import
@contextlib.contextmanager
def timm_registry() -> Iterator[None]:
    """timm's table of models stays as it was.

    Importing solo-learn registers its own `convnext_tiny`, … (1.0.6) and `vit_tiny`, … (1.0.2)
    with timm; afterwards `timm.create_model("convnext_tiny")` raised "_create_convnext() got
    multiple values for keyword argument 'pretrained'" (timm >= 0.9). May go when solo-learn does
    not register any more. solo-learn itself calls its functions directly.
    """
    import timm  # noqa: F401  (fills the tables)
    from timm.models import _registry

    tables = {
        name: table
        for name, table in vars(_registry).items()
        if name.startswith("_") and not name.startswith("__") and isinstance(table, dict | set)
    }
    before = {name: _copy_of(table) for name, table in tables.items()}
    try:
        yield
    finally:
        for name, table in tables.items():
            table.clear()
            table.update(before[name])


def _copy_of(table: dict | set) -> dict | set:
    if isinstance(table, set):
        return set(table)
    return {
        key: copy.copy(value) if isinstance(value, dict | set | list) else value
        for key, value in table.items()
    }


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silences what solo-learn's import is known to warn about; every other warning is shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(timm|solo)\b")
        warnings.filterwarnings("ignore", message="Overwriting .* in registry", module="solo")
        yield


def check_not_imported() -> None:
    """Makes sure that the wheel's import is ours.

    What an `import solo` that failed has left behind is dropped: it is bound to the wrong
    lightning, and Python would use it again.

    Raises:
        UserError: solo-learn 1.0.2 was imported before, and is bound to other libraries for good.
    """
    if "solo" in sys.modules:
        raise UserError(
            "solo-learn was imported too early: before solo_minent.plugin, which makes version "
            "1.0.2 work on today's libraries. Import solo_minent.plugin first."
        )
    for name in [name for name in sys.modules if name.startswith("solo.")]:
        del sys.modules[name]
