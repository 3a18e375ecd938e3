"""Models of the zoo as entries of torch.hub, one function each: `minent_resnet18_cifar10()`.

    folder = pathlib.Path(solo_minent.zoo.__file__).parent
    torch.hub.load(folder, "minent_resnet18_cifar10", source="local")

torch.hub takes a repository whose top level has a hubconf.py; in one of your own,
`from solo_minent.zoo.hubconf import *` makes the same entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Every public name that can be called is an entry to torch.hub.
from solo_minent.zoo.index import python_name as _python_name
from solo_minent.zoo.index import read_index as _read_index
from solo_minent.zoo.models import create_model as _create_model
from solo_minent.zoo.schema import words_of as _words_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

dependencies = ["solo_minent", "timm", "torch", "torchvision"]


def _entry_point(name: str, words: dict[str, Any]) -> Callable[..., Any]:
    def load(pretrained: bool = True, num_classes: int = 0) -> Any:
        return _create_model(name, pretrained, num_classes)

    said = ", ".join(f"{key} {value}".strip() for key, value in words.items() if value)
    load.__name__ = _python_name(name)
    load.__doc__ = f"{said}. Takes `pretrained` and `num_classes` as solo_minent.zoo.create_model."
    return load


_ENTRIES = [_entry_point(entry.id, _words_of(entry)) for entry in _read_index()]
globals().update({load.__name__: load for load in _ENTRIES})
__all__ = [load.__name__ for load in _ENTRIES]  # noqa: PLE0605
