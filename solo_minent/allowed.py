"""What a value may be, and the one line that is said about a value that it may not be."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from operator import attrgetter
from typing import Any, NamedTuple

from solo_minent.errors import UserError

# The product of any two is finite in float32, and an integer fits 64 bits.
LARGEST = 1e18
MAX_DIM = 2**16  # of a head's layers


class Range(NamedTuple):
    """Numbers from `low` to `high`; NaN, infinity and what is beyond LARGEST are in no range.

    Attributes:
        low: smallest value.
        fix: value that the message proposes.
        high: largest value.
        above: low itself is not allowed.
        below: high itself is not allowed.
    """

    low: float
    fix: Any
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the value is a number within the range."""
        # A comparison, unlike isfinite, takes integers of any size; it is false for NaN.
        if not isinstance(value, Real) or not -LARGEST <= value <= LARGEST:
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}"
        if math.isinf(self.high):
            return f"finite and {low}"
        return f"{low} and {'below' if self.below else 'at most'} {self.high}"


def check_range(key: str, value: Any, allowed: Range) -> None:
    """Raises UserError if the value of a key is not in its range."""
    if not allowed.holds(value):
        end = f", not beyond {LARGEST:g}" if is_huge(value) else ""
        raise UserError(
            f"{key} is out of range: {short(value)}. It is {allowed}{end}. Set {key}={allowed.fix}."
        )


def check_ranges(holder: Any, ranges: Mapping[str, Range], prefix: str = "") -> None:
    """`check_range` of attributes, named by their path; None (not set) is passed over.

    Args:
        holder: object with the attributes, such as a configuration.
        ranges: range of each attribute, `{"optimizer.lr": Range(…)}`.
        prefix: what stands before the path in the configuration.
    """
    for path, allowed in ranges.items():
        value = attrgetter(path)(holder)
        if value is not None:
            check_range(f"{prefix}{path}", value, allowed)


def check_rising(holder: Any, low: str, high: str, fix: float, prefix: str = "") -> None:
    """Raises UserError unless two attributes lie in [0, 1] and the second is not the smaller."""
    first, last = getattr(holder, low), getattr(holder, high)
    if not 0 <= first <= last <= 1:
        raise UserError(
            f"{prefix}{low} to {prefix}{high} does not rise within [0, 1]: {first} to {last}. "
            f"Set {prefix}{low}={fix}."
        )


def is_huge(value: Any) -> bool:
    """Whether a number is finite, and too large to compute with."""
    return isinstance(value, Real) and LARGEST < abs(value) < math.inf


def short(value: Any) -> str:
    """A value in a message: what is printed of it, on one line and not for pages."""
    letters = (letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
    text = "".join(letters)
    return text if len(text) <= 200 else f"{text[:200]}…"


def check_one_of(key: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises UserError if the value of a key is not among the allowed ones."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(
            f"{key} is unknown: {short(value)}. It is one of {', '.join(allowed)}. "
            f"Set {key}={closest(str(value), allowed)}."
        )


def closest(word: str, words: Iterable[str]) -> str:
    """The word that was probably meant."""
    words = list(words)
    return (difflib.get_close_matches(word, words, 1, 0.0) or words)[0]


def reason(error: BaseException) -> str:
    """One line out of the several of an exception of Hydra, OmegaConf or YAML."""
    error = error.__cause__ or error
    drop = ("reference_type=", "object_type=", "provider=", "Config search path", "See https://")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line.replace("full_key: ", "at ") for line in lines if not line.startswith(drop)]
    return " ".join(kept[:3]).rstrip(".:") or type(error).__name__
