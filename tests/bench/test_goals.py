"""The goals: what the csv files say of them, in every case that can occur."""

import csv

import pytest

from solo_minent.bench.goals import (
    FILES,
    GOALS,
    NOTES,
    goal_rows,
    print_goals,
    read_goals,
    read_notes,
)
from solo_minent.errors import UserError

LOSS = {"precision": "32", "ms ours": 1, "ms plain": 2, "pairs": 5, "MiB ours": 1, "MiB plain": 2}


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILES[name], "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def loss_row(loss, shape, device, faster, low, high, **others):
    row = LOSS | {"loss": loss, "shape": shape, "device": device, "times faster": faster}
    return row | {"low": low, "high": high} | others


def by_key(*folders):
    return {result.key: result for result in read_goals(folders)}


def test_the_goals_are_those_of_the_issue():
    limits = {goal.key: (dict(goal.limits), goal.at_least) for goal in GOALS}
    assert limits == {
        "mec": ({"cpu": 2.0, "cuda": 2.0}, True),
        "corinfomax": ({"cpu": 1.5, "cuda": 1.5}, True),
        "heads": ({"cpu": 0.97, "cuda": 1.5}, True),
        "memory": ({"cpu": 1.0, "cuda": 1.0}, False),
        "share": ({"cpu": 0.1, "cuda": 0.1}, False),
        "loop": ({"cpu": 0.95, "cuda": 0.9}, True),
        "knn_euclidean": ({"cpu": 5.0}, True),
        "knn_cosine": ({"cpu": 5.0}, True),
        "knn_memory": ({"cpu": 0.25}, False),
        "help": ({"cpu": 1.0}, False),
        "first_step": ({"cpu": 15.0}, False),
        "imports": ({"cpu": 0.0}, False),
    }


def test_without_files_nothing_is_measured(tmp_path):
    found = read_goals([tmp_path / "none"])
    assert len(found) == sum(len(goal.limits) for goal in GOALS)
    assert all(r.reached is None and r.measured == "not measured yet" for r in found)


def test_losses_are_read_by_shape_device_and_precision(tmp_path):
    heads = "n=256 512-1024-1024-2048…16 2 views"
    rows = [
        loss_row("mec", "n=1024 d=2048 order 4", "cpu", 2.25, 2.125, 2.5),
        loss_row("corinfomax", "n=1024 d=512", "cpu", 1.25, 1.125, 1.375),
        loss_row("corinfomax", "n=1024 d=64", "cpu", 9, 9, 9, **{"MiB ours": 3}),
        loss_row("minent heads", heads, "cuda", 2, 1.75, 2.25),
        loss_row("minent heads", heads, "cuda", 1.25, 1.125, 1.375, precision="bf16-mixed"),
    ]
    write(tmp_path, "loss", rows)
    found = by_key(tmp_path)
    assert found["mec_cpu"].reached is True and found["mec_cuda"].reached is None
    assert found["mec_cpu"].measured == "2.25x (2.12 to 2.50)"
    assert found["corinfomax_cpu"].reached is False
    # The worst figure counts and stands first; each has its spread.
    assert found["heads_cuda"].reached is False
    assert (
        found["heads_cuda"].measured == "bf16-mixed 1.25x (1.12 to 1.38), 32 2.00x (1.75 to 2.25)"
    )
    assert found["memory_cpu"].reached is False
    assert found["memory_cpu"].measured == "corinfomax 1.50x, mec 0.50x"
    assert found["memory_cuda"].reached is True


def test_steps_loops_knn_and_startup_are_read(tmp_path):
    step = {"device": "cpu", "method": "mec", "phase": "heads and loss"}
    shares = {"share": 0.05, "share low": 0.04, "share high": 0.0625}
    write(
        tmp_path,
        "phases",
        [
            step | shares,
            step | shares | {"method": "twist", "share": 0.125},
            step | shares | {"phase": "loss", "share": 0.9},
        ],
    )
    loop = {"device": "cpu", "method": "mec", "ratio low": 0.5, "ratio high": 2}
    write(
        tmp_path,
        "loop",
        [loop | {"part": "loop", "ratio": 0.96}, loop | {"part": "loader", "ratio": 0.1}],
    )
    knn = {"device": "cpu", "data": "clusters", "low": 4, "high": 7, "of the peer's": 0.25}
    write(
        tmp_path,
        "knn",
        [
            knn | {"distance": "cosine", "kNN": "solo_minent", "times faster": 4.5},
            knn | {"distance": "euclidean", "kNN": "solo_minent", "times faster": 5.5},
            knn | {"distance": "euclidean", "kNN": "solo-learn", "times faster": 1},
        ],
    )
    start = {"seconds": 0.5, "low": 0.25, "high": 0.75, "unasked": ""}
    write(
        tmp_path,
        "startup",
        [
            start | {"what": "solo-minent --help"},
            start | {"what": "first step of digits/minent", "seconds": 16, "unasked": "wandb h5py"},
        ],
    )
    found = by_key(tmp_path)
    reached = {key: r.reached for key, r in found.items() if r.reached is not None}
    assert reached == {
        "share_cpu": False,
        "loop_cpu": True,
        "knn_euclidean_cpu": True,
        "knn_cosine_cpu": False,
        "knn_memory_cpu": True,
        "help_cpu": True,
        "first_step_cpu": False,
        "imports_cpu": False,
    }
    assert found["share_cpu"].measured == "twist 12.5 % (4.0 to 6.2), mec 5.0 % (4.0 to 6.2)"
    assert found["help_cpu"].measured == "0.50 s (0.25 to 0.75)"
    assert found["imports_cpu"].measured == "h5py wandb 2"


def test_no_unasked_import_is_a_goal_that_is_reached(tmp_path):
    row = {"what": "solo-minent --help", "seconds": 1, "low": 1, "high": 1, "unasked": ""}
    write(tmp_path, "startup", [row])
    result = by_key(tmp_path)["imports_cpu"]
    assert (result.reached, result.measured) == (True, "0")


def test_the_first_folder_with_figures_of_a_device_counts(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    shape = "n=1024 d=2048 order 4"
    write(first, "loss", [loss_row("mec", shape, "cpu", 2, 2, 2)])
    write(
        second,
        "loss",
        [loss_row("mec", shape, "cpu", 9, 9, 9), loss_row("mec", shape, "cuda", 3, 3, 3)],
    )
    found = by_key(first, second)
    assert found["mec_cpu"].measured == "2.00x" and found["mec_cuda"].measured == "3.00x"


def test_a_reason_stands_beside_a_goal_that_was_not_reached(tmp_path, capsys):
    shape = "n=1024 d=2048 order 4"
    write(tmp_path, "loss", [loss_row("mec", shape, d, 1.5, 1, 2) for d in ("cpu", "cuda")])
    (tmp_path / NOTES).write_text("mec_cpu: |\n  Bound by\n  one product.\n")
    rows = {(r["goal"], r["device"]): r for r in goal_rows(read_goals([tmp_path]))}
    name = GOALS[0].name
    assert rows[name, "CPU"]["why not"] == "Bound by one product."
    assert rows[name, "GPU"]["why not"] == "no note yet" and rows[name, "GPU"]["reached"] == "NO"
    print_goals([tmp_path])
    shown = capsys.readouterr().out
    assert "Bound by one product." in shown and "≥ 2.00x" in shown and "not measured" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [("mec_gpu: slow\n", "notes name no goal: mec_gpu"), ("mec_cpu: [\n", "notes do not load")],
)
def test_wrong_notes_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / NOTES).write_text(text)
    with pytest.raises(UserError, match=message) as found:
        read_notes(tmp_path / NOTES)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text", ["loss,shape,device\nmec,n=1024 d=2048,cpu\n", "\xff\xfe\x00", 'loss\n"a"b\n']
)
def test_a_damaged_csv_is_named(text, tmp_path):
    (tmp_path / FILES["loss"]).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"results are damaged: .*bench-loss\.csv"):
        read_goals([tmp_path])
