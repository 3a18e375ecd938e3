"""Growth: slopes are those of the measured points, the picture shows all of them."""

import math

import pytest

from solo_minent.bench import growth, loaders
from solo_minent.bench.growth import WHY, bench_growth, exponents, growth_table, series
from solo_minent.bench.growth_picture import draw_growth
from solo_minent.errors import UserError


def points(method, against, time, memory, first=100, device="cpu"):
    values = [first * 2**k for k in range(4)]
    same = {"method": method, "against": against, "fixed": "", "device": device}
    return [
        same | {"value": v, "ms": time(v), "low": time(v), "high": time(v), "MiB": memory(v)}
        for v in values
    ]


def test_the_exponent_is_fitted_to_the_points():
    rows = points("mec", "n", lambda n: 1e-3 * n**2, lambda n: 5.0)
    time, memory = exponents(rows)
    assert (time.quantity, memory.quantity) == ("ms", "MiB")
    assert time.slope == pytest.approx(2) and time.last == pytest.approx(2)
    assert time.limit == pytest.approx(1000)  # 1e-3 n^2 ms = 1 s
    assert memory.slope == pytest.approx(0) and memory.limit is None
    # Columns of a csv are words.
    assert exponents([{key: str(value) for key, value in row.items()} for row in rows]) == [
        time,
        memory,
    ]


def test_a_bend_shows_in_the_last_doubling():
    time, _ = exponents(points("mec", "d", lambda d: d**3 if d < 500 else 8 * 100**3, lambda d: d))
    assert 0 < time.slope < 3 and time.last == pytest.approx(-3)


def test_nothing_is_said_of_sizes_far_beyond_the_measured_ones():
    (time, _) = exponents(points("minent", "n", lambda n: 1e-3 * n, lambda n: n))
    assert time.limit is None  # a second at a million


def test_series_of_devices_and_workers_stay_apart():
    rows = points("twist", "C", lambda c: c, lambda c: c) + points(
        "twist", "C", lambda c: c**2, lambda c: c, device="cuda"
    )
    rows += points("loader", "workers", lambda w: w, lambda w: w)
    assert [round(e.slope, 6) for e in exponents(rows)] == [1, 1, 2, 1]
    assert [row["device"] for row in growth_table(rows)] == ["cpu", "cuda"]


def test_every_series_has_four_points_each_twice_the_last():
    for tiny in (False, True):
        for each in series(tiny):
            steps = [b / a for a, b in zip(each.values, each.values[1:], strict=False)]
            assert steps == [2.0] * 3, each
    assert {each.method for each in series()} | {"loader"} == set(WHY)
    assert {(each.method, each.against) for each in series()} == {
        ("mec", "n"),
        ("mec", "d"),
        ("corinfomax", "n"),
        ("corinfomax", "d"),
        ("twist", "n"),
        ("twist", "C"),
        ("minent", "n"),
        ("minent", "Σd"),
        ("kNN", "training points"),
    }
    # CorInfoMax needs more images than columns.
    for each in series():
        if each.method == "corinfomax":
            number = int(each.fixed.partition("=")[2])
            n, d = (each.values, [number]) if each.against == "n" else ([number], each.values)
            assert min(n) >= max(d)


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(loaders, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(growth, "WORKERS", (0, 1))
    rows = bench_growth(["cpu"], pairs=1, seconds=1e-4, tiny=True)
    assert len(rows) == 4 * len(series()) + 3
    for row in rows:
        assert row["low"] <= row["ms"] <= row["high"] and row["pairs"] == 1
        assert row["ms"] > 0 and math.isfinite(row["MiB"])
    assert [row["value"] for row in rows if row["method"] == "loader"] == [0, 1, 0]
    draw_growth(rows, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 1500 and len(picture.convert("L").getcolors(256)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["growth.png"]


def test_what_cannot_be_measured_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(growth, "_grow", None)
    with pytest.raises(UserError, match="--pairs is out of range: 0"):
        bench_growth(["cpu"], pairs=0)
    with pytest.raises(UserError, match="--device is unknown: gpu"):
        bench_growth(["gpu"])
