"""What the start-up benchmark says is what happened."""

from __future__ import annotations

import pytest

from solo_minent.bench import startup
from solo_minent.errors import UserError

COLUMNS = ["what", "seconds", "low", "high", "repeats", "modules", "unasked", "by libraries"]


@pytest.fixture(scope="module")
def rows():
    return startup.bench_startup(1, ["accelerator=cpu"])


def test_rows(rows):
    assert [row["what"] for row in rows] == [
        "solo-minent --help",
        "import solo_minent",
        "import solo_minent.plugin",
        "first step of digits/minent",
    ]
    for row in rows:
        assert [*row] == [*COLUMNS, "host"]
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert (row["repeats"], row["unasked"]) == (1, "")


def test_the_first_step_was_made(rows):
    words, package, plugin, step = rows
    assert step["modules"] > plugin["modules"] > words["modules"] > package["modules"]


def test_a_heavy_module_is_found_and_named():
    found = startup._run([f"import sys; sys.modules['umap'] = sys; {startup._TELL}"], "umap")
    assert found["heavy"] == ["umap"]
    assert startup._row("x", [found], set(), "1")["unasked"] == "umap"
    assert startup._row("x", [found], {"umap"}, "1")["by libraries"] == "umap"


def test_a_command_that_fails_is_no_measurement():
    with pytest.raises(UserError, match="^x has failed before its clock stopped: no such thing"):
        startup._run(["raise SystemExit('no such thing')"], "x")
