"""The methods, found by scanning this folder: a new file with an `SSLMethod` in it is enough."""

from __future__ import annotations

import importlib
import pkgutil

from solo_minent.methods.base import Progress, SSLMethod, Views

__all__ = ["Progress", "SSLMethod", "Views", "available"]


def available() -> dict[str, type[SSLMethod]]:
    """Every method by name, in alphabetical order.

    Returns:
        `{"corinfomax": CorInfoMax, "mec": MEC, …}`.
    """
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, SSLMethod) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))
