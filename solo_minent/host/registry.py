"""The list of what was changed about solo-learn, in the order in which it is applied.

An adaptation is a context manager held while solo-learn is imported, or a function called
afterwards. Its docstring says what broke, since which release, and when it may go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

DURING_IMPORT: dict[str, Callable[[], AbstractContextManager[None]]] = {}
ADAPTATIONS: dict[str, Callable[[], None]] = {}

APPLIED: list[str] = []

# Names that are not applied. Empty but in the tests that show that each adaptation is needed.
LEFT_OUT: set[str] = set()


def during_import(
    function: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Registers a context manager that is held while solo-learn is imported."""
    DURING_IMPORT[function.__name__] = function
    return function


def adaptation(function: Callable[[], None]) -> Callable[[], None]:
    """Registers a function that is called once, after solo-learn was imported."""
    ADAPTATIONS[function.__name__] = function
    return function


@contextlib.contextmanager
def importing(*names: str) -> Iterator[None]:
    """Holds the import-time adaptations of these names."""
    with contextlib.ExitStack() as stack:
        for name in names:
            if name not in LEFT_OUT:
                stack.enter_context(DURING_IMPORT[name]())
                if name not in APPLIED:  # what is imported later needs some of them again
                    APPLIED.append(name)
        yield


def apply_all() -> None:
    """Applies every registered adaptation, in order."""
    for name, function in ADAPTATIONS.items():
        if name not in LEFT_OUT:
            function()
            APPLIED.append(name)
