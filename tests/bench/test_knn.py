"""The comparison with solo-learn's kNN, small."""

import pandas as pd
import pytest

from solo_minent.bench import knn
from solo_minent.bench.knn import Sizes, bench_knn
from solo_minent.cli import main
from solo_minent.errors import UserError


def test_both_sides_are_measured_and_agree(tmp_path, capsys):
    csv = tmp_path / "knn.csv"
    sizes = ["--train", "3000", "--test", "200", "--width", "16", "--pairs", "1", "--threads", "1"]
    assert main(["bench", "knn", *sizes, "--data", "clusters", "--csv", str(csv)]) == 0
    assert "solo-learn" in capsys.readouterr().out
    rows = pd.read_csv(csv)
    assert rows[["distance", "kNN"]].values.tolist() == [
        ["cosine", "solo-learn"],
        ["cosine", "solo_minent"],
        ["euclidean", "solo-learn"],
        ["euclidean", "solo_minent"],
    ]
    assert (rows["seconds"] > 0).all() and (rows["train"] == 3000).all()
    assert {"cpu", "threads", "packages", "solo_learn_version", "device"} <= set(rows.columns)
    # Euclidean votes differ: solo-learn weighs by 1 / distance.
    assert abs(rows["top-1"][0] - rows["top-1"][1]) <= 0.5


def test_sides_take_turns_and_are_compared_turn_by_turn(monkeypatch):
    seconds = {"solo-learn": iter([4.0, 6.0, 9.0]), "solo_minent": iter([2.0, 1.0, 3.0])}
    turns = []

    def run(sizes, data, distance, side):
        turns.append(side)
        return {"seconds": next(seconds[side]), "cpu": 1, "extra": 8, "rss": 9, "top1": 50}

    monkeypatch.setattr(knn, "DISTANCES", ("cosine",))
    monkeypatch.setattr(knn, "_run", run)
    peer, own = bench_knn(Sizes(), ["gaussian"], pairs=3)
    there = ["solo-learn", "solo_minent"]
    assert turns == [*there, *reversed(there), *there]
    assert [own[key] for key in ("times faster", "low", "high", "pairs")] == [3.0, 2.0, 6.0, 3]
    assert peer["times faster"] == 1 and own["seconds"] == 2.0 and own["of the peer's"] == 1


def test_a_side_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr(knn, "SIDES", ("nobody's", "solo_minent"))
    with pytest.raises(UserError, match="kNN of nobody's has failed: .*invalid choice") as found:
        bench_knn(Sizes(300, 20, 8), ["clusters"], pairs=1)
    assert "\n" not in str(found.value)


def test_what_cannot_be_measured_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(knn, "_run", None)
    for sizes, data, message in [
        (Sizes(train=19), ["clusters"], "--train is out of range: 19"),
        (Sizes(test=9), ["clusters"], "--test is out of range: 9"),
        (Sizes(threads=-1), ["clusters"], "--threads is out of range: -1"),
        (Sizes(), ["noise"], "--data is unknown: noise"),
    ]:
        with pytest.raises(UserError, match=message):
            bench_knn(sizes, data)
