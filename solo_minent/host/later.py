"""Parts of solo-learn that are imported when they are first used: its DALI and UMAP modules.

solo-learn imports both whenever they can be imported; umap with numba, and DALI, take seconds of
every command, and most runs need neither. timm, which it imports, does so with wandb.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# What a module must find to be put off; without it solo-learn shall notice at once.
DALI = ("nvidia.dali",)
TIMM = {"timm.utils.summary": ("wandb",)}
UMAP = ("matplotlib", "pandas", "seaborn", "umap", "wandb")

_LOCK = threading.RLock()


class LaterModule(ModuleType):
    """A module that runs when one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        loader = self.__spec__.loader
        # Other special names are asked for by whoever looks through all modules.
        of_use = name == "__all__" or not name.startswith("__")
        if of_use and isinstance(loader, _Loader):  # it is another one after a reload
            with _LOCK:
                if loader.importing and name != "__all__":
                    return _Name(self, name)
                if not loader.started:
                    loader.run(self)
        return super().__getattribute__(name)

    def __dir__(self) -> list[str]:
        getattr(self, "__all__", None)  # runs it
        return list(super().__dir__())


class _Name:
    """What solo-learn takes out of such a module while it is imported itself."""

    def __init__(self, module: LaterModule, name: str) -> None:
        self._own = module, name

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(*self._own), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(*self._own)(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, getattr(*self._own))

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, getattr(*self._own))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        return (getattr(*self._own),)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        module, name = self._own
        return _name_of, (module.__name__, name)  # a copy is the real one


def _name_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class _Loader:
    """Makes a module at once and runs it later."""

    def __init__(self, real: Any, within: Callable[[], AbstractContextManager[Any]]) -> None:
        self.real, self.within = real, within
        self.importing, self.started = True, False
        self.then: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:  # the source, for who shows it
        return getattr(self.real, name)

    def create_module(self, spec: ModuleSpec) -> LaterModule:
        return LaterModule(spec.name, None)

    def exec_module(self, module: ModuleType) -> None:
        """Called by the import; see `run`."""

    def run(self, module: LaterModule) -> None:
        self.started = True
        before = set(vars(module))
        try:
            with self.within():
                self.real.exec_module(module)
        except BaseException:
            for name in set(vars(module)) - before:
                delattr(module, name)
            self.started = False  # the next one meets the same error, not half a module
            raise
        for function in self.then:
            function()
        package = module.__name__.partition(".")[0]
        modules = list(sys.modules.items())  # other threads may import
        for holder in [m for n, m in modules if n.partition(".")[0] == package]:
            for name, value in list(vars(holder).items()):
                if isinstance(value, _Name) and value._own[0] is module:
                    setattr(holder, name, getattr(*value._own))


class _Finder:
    """Finds modules as Python does, and puts off those that it was given."""

    def __init__(
        self, needs: Mapping[str, Sequence[str]], within: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.needs, self.within = needs, within
        self.loaders: list[_Loader] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.needs or not all(map(_is_there, self.needs[name])):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader, self.within)
            self.loaders.append(spec.loader)
        return spec


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
    except ValueError:  # somebody put a module there by hand
        return True


@contextlib.contextmanager
def put_off(
    needs: Mapping[str, Sequence[str]],
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Iterator[None]:
    """Modules that are imported in this context run when they are first used.

    Args:
        needs: the packages that each module imports, by the module's name. Where one of them is
            missing, the module is imported as ever.
        within: makes the context in which they run then.
    """
    finder = _Finder(needs, within)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for loader in finder.loaders:
            loader.importing = False


def when_loaded(module: ModuleType, function: Callable[[], None]) -> None:
    """Calls a function as soon as a module's names are there: now, or before anyone gets one."""
    loader = module.__spec__.loader
    if isinstance(loader, _Loader) and not loader.started:
        loader.then.append(function)
    else:
        function()
