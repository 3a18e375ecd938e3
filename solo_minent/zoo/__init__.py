"""The model zoo: an index of checkpoints with hashes, and what fetches, checks and loads them.

load_backbone("minent-resnet18-cifar10"): a backbone with its transform and feature dimension
create_model, list_models: the same in timm's words; `solo_minent.zoo.hubconf` in torch.hub's
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo_minent.zoo.models import ZooModel, create_model, list_models, load_backbone

__all__ = ["ZooModel", "create_model", "list_models", "load_backbone"]


def __getattr__(name: str) -> Any:
    """Loads PyTorch only once a model is asked for: the index alone is light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from solo_minent.zoo import models

    return getattr(models, name)
