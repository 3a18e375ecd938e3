"""The only room that imports solo-learn: a method becomes a LightningModule here.

Two versions of solo-learn are served, with the same names: `wheel`, the 1.0.2 of PyPI (argparse,
keyword arguments), and `source`, the 1.0.6 of the git repository (Hydra, one `cfg`). Which one is
there is found out without importing it; solo-learn itself, which takes seconds, is imported when
one of the names below is used for the first time.

    HOST: "wheel" or "source"
    VERSION: the version of solo-learn
    adapt(method_cls): the LightningModule class of a method
    register(method_cls): adapt it and put it into `solo.methods.METHODS`
    build_method(config, backbone, lr_factor=None, *, num_classes, online_knn=None)
    fit_data(config): keywords for `Trainer.fit` from solo-learn's own loaders
    callbacks(config, umap=False): solo-learn's checkpointer and UMAP callback
    linear_probe(backbone, linear_config, …): solo-learn's linear evaluation
    LinearConfig: its hyper-parameters
    backbone_state(state_dict): the weights of the backbone alone
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install --no-deps solo-learn==1.0.2"

_FROM_HOST = frozenset({"adapt", "register", "build_method", "fit_data", "callbacks"}) | {
    "linear_probe",
    "LinearConfig",
    "backbone_state",
}


class SoloLearnMissingError(UserError, ImportError):
    """solo-learn is not installed."""


def _locate() -> Path:
    """Folder of the installed package `solo`.

    Raises:
        SoloLearnMissingError: if there is none.
    """
    spec = importlib.util.find_spec("solo")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "methods" / "base.py").is_file():
            return Path(folder)
    raise SoloLearnMissingError(
        "solo-learn is not installed: no package `solo` with `solo/methods` was found. "
        f"Run `{INSTALL}`."
    )


def _detect() -> str:
    return "source" if (_locate() / "backbones").is_dir() else "wheel"


def _version() -> str:
    """The version of the package that is imported, which a source tree may shadow."""
    folder = _locate()
    for dist in importlib.metadata.distributions(name="solo-learn"):
        if Path(str(dist.locate_file("solo"))).resolve() == folder.resolve():
            return dist.version
    setup = folder.parent / "setup.py"
    stated = re.search(r'version="([\d.]+)"', setup.read_text()) if setup.is_file() else None
    return stated.group(1) if stated else "unknown"


def _host() -> ModuleType:
    return importlib.import_module(f"solo_minent.host.{_detect()}")


def __getattr__(name: str) -> Any:
    if name == "HOST":
        return _detect()
    if name == "VERSION":
        return _version()
    if name in _FROM_HOST:
        return getattr(_host(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
