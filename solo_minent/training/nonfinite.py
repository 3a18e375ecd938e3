"""What is said of a step that is not finite: what it was, and which process brought it in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SHOWN = 3  # names in a message; the files have all


@dataclass
class Found:
    """What a process found not to be finite in a step or in what was to be saved.

    Attributes:
        terms: of the loss, "nan", "inf" or "-inf" of each.
        tensors: names of gradients, or of weights and other state.
        images: those of the step's last batch are not finite themselves.
        unlisted: why its images could not be written down.
        last: what the first process says of the last checkpoint.
    """

    terms: dict[str, str] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=list)
    images: bool = False
    unlisted: str = ""
    last: str = ""


def plain(terms: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no word for what is not finite."""
    return {name: value if math.isfinite(value) else str(value) for name, value in terms.items()}


def guilty_ranks(found: Sequence[Found]) -> list[int]:
    """The processes that it came from: losses of all images carry what one of them brought in."""
    for each in (
        [one.images for one in found],
        [len(one.terms) for one in found],
        [len(one.tensors) for one in found],
    ):
        if any(each):
            return [of for of, much in enumerate(each) if much == max(each)]
    return list(range(len(found)))


def where(found: Sequence[Found]) -> str:
    ranks = guilty_ranks(found)
    if len(ranks) == len(found) > 1:
        return f"all {len(found)} ranks"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def said(found: Sequence[Found]) -> str:
    one = found[guilty_ranks(found)[0]]
    if one.terms:
        return ", ".join(f"{name} is {value}" for name, value in one.terms.items())
    return f"gradient of {some(one.tensors)}"


def some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
