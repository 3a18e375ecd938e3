"""The table side by side, and the csv."""

import csv
import io

import pytest

from solo_minent.report.collect import read_runs
from solo_minent.report.results import metrics_of, splits_of, table, write_csv


def test_metrics_are_what_stands_before_the_data_set(make_result):
    result = make_result(metrics={"top1": 91.25, "std": 2.5}, percent=10, head="16")
    assert metrics_of(result) == {"top1": 91.25, "std": 2.5}
    assert splits_of(result) == {"train": 1438, "test": 359}


def test_rows_are_protocols_and_columns_runs_then_baselines(make_run, make_result):
    linear = make_result("linear", "linear, Adam", top1=97.0, checkpoint_sha256=True)
    few = make_result("few_shot", "1-NN", metrics={"top1": 90.5, "std": 2.125})
    pixels = make_result(target="pixels", top1=98.6)
    untrained = make_result(target="random", top1=82.5)
    a = make_run("twist", results=[linear, pixels, few])
    b = make_run("mec", results=[make_result(top1=92.0), pixels, untrained])
    found = table(read_runs([a, b]))

    assert found.columns == ["twist/default", "mec/default", "raw pixels", "untrained backbone"]
    assert found.runs == 2
    assert [(r.evaluation, r.protocol) for r in found.rows] == [
        ("linear", "linear, Adam"),
        ("knn", "5-NN, euclidean, majority vote"),
        ("few_shot", "1-NN"),
    ]
    linear_row, knn_row, few_row = found.rows
    assert few_row.cells[0][0].value == "90.50 ± 2.12"
    assert [[n.value for n in cell] for cell in knn_row.cells] == [
        [], ["92.00"], ["98.60"], ["82.50"],
    ]  # fmt: skip
    assert knn_row.cells[2][0].runs == ["twist/default", "mec/default"]
    number = linear_row.cells[0][0]
    digest = read_runs([a])[0].weights
    assert number.sha256 == digest and not number.stale
    assert number.facts == [
        f"weights {digest[:8]}",
        "seed 0, 2026-01-31",
        "1,438 train / 359 test",
    ]
    assert knn_row.cells[1][0].stale  # its checkpoint is not the folder's
    assert not knn_row.cells[2][0].stale


def test_baselines_that_differ_are_told_apart(make_run, make_result):
    one = make_run("twist", results=[make_result(target="pixels", top1=98.6)])
    two = make_run("mec", results=[make_result(target="pixels", top1=97.0)])
    (row,) = table(read_runs([one, two])).rows
    assert [(n.value, n.runs) for n in row.cells[2]] == [
        ("98.60", ["twist/default"]),
        ("97.00", ["mec/default"]),
    ]


def test_csv_has_every_result_and_does_not_depend_on_the_order_of_runs(
    make_run, make_result, tmp_path
):
    nasty = 'a "quoted", <b>\nline'
    a = make_run("twist", results=[make_result("linear", nasty, top1=1 / 3, classes=[1, 2])])
    b = make_run(
        "mec", results=[make_result(), make_result(target="random", metrics={"nmi": 50.5})]
    )
    texts = []
    for order in ([a, b], [b, a]):
        write_csv(tmp_path / "out" / "results.csv", read_runs(order))
        texts.append((tmp_path / "out" / "results.csv").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    rows = list(csv.DictReader(io.StringIO(texts[0], newline="")))
    assert [(r["run"], r["target"], r["evaluation"]) for r in rows] == [
        ("digits/mec/default", "random", "knn"),
        ("digits/mec/default", "trained", "knn"),
        ("digits/twist/default", "trained", "linear"),
    ]
    assert rows[2]["protocol"] == nasty and float(rows[2]["top1"]) == 1 / 3
    assert rows[1]["train_images"] == "1438" and rows[1]["version_torch"] == "2.11.0"
    assert "weights" not in rows[0] and "classes" not in rows[0]
    assert list(tmp_path.joinpath("out").iterdir()) == [tmp_path / "out" / "results.csv"]


@pytest.mark.parametrize("value", [None, "high", True, float("nan")])
def test_what_is_no_number_is_no_metric(value, make_result):
    assert metrics_of(make_result(metrics={"top1": value})) == {}
