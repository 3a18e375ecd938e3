"""Ranges, and the line that is said about a value outside."""

import math
from types import SimpleNamespace

import pytest

from solo_minent.allowed import Range, check_one_of, check_range, check_ranges, closest, reason
from solo_minent.errors import UserError


@pytest.mark.parametrize(
    ("allowed", "holds", "refuses", "text"),
    [
        (Range(1, 1), [1, 10**9], [0, 0.9], "finite and at least 1"),
        (Range(0, 1, above=True), [1e-9], [0, -1], "finite and above 0"),
        (Range(0, 0, high=1, below=True), [0, 0.9], [1, -0.1], "at least 0 and below 1"),
        (Range(0, 1, high=1, above=True), [1], [0, 1.1], "above 0 and at most 1"),
    ],
)
def test_ranges_and_their_words(allowed, holds, refuses, text):
    assert all(allowed.holds(value) for value in holds)
    assert not any(allowed.holds(v) for v in [*refuses, math.nan, math.inf, -math.inf, "1", None])
    assert str(allowed) == text


def test_messages():
    with pytest.raises(UserError, match=r"^a is out of range: 2. It is .* at most 1. Set a=0.5.$"):
        check_range("a", 2, Range(0, 0.5, high=1))
    with pytest.raises(UserError, match=r"^a is unknown: wrod. It is one of word, x. Set a=word.$"):
        check_one_of("a", "wrod", ["word", "x"])
    holder = SimpleNamespace(part=SimpleNamespace(a=-1, b=None))
    check_ranges(holder, {"part.b": Range(0, 0)})
    with pytest.raises(UserError, match=r"^kwargs\.part\.a is out of range: -1"):
        check_ranges(holder, {"part.a": Range(0, 0)}, "kwargs.")


def test_closest_always_has_an_answer():
    assert closest("mnt", ["mec", "minent"]) in ("mec", "minent")
    assert closest("", ["mec"]) == "mec"


def test_a_reason_is_one_line():
    error = ValueError("bad value\n    full_key: a.b\n    object_type=dict\n")
    assert reason(error) == "bad value at a.b"
    assert reason(ValueError()) == "ValueError"
