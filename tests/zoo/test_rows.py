"""Rows of the tables of results: one a seed, of runs that are of one model, and of the index."""

import json
import re

import pytest

from solo_minent.zoo.index import read_index
from solo_minent.zoo.rows import read_rows


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_rows_of_seeds(run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 1\n"))
    edit(run / "results.json", lambda rows: rows[0].update(top1=50.0))
    for _ in range(2):  # a row is replaced
        status, out, _ = command("zoo", "add", run, "--id", "minent-tiny", "--results-only")
        assert status == 0 and "results" in out
    rows = read_rows(zoo / "results" / "zoo-digits.csv")
    assert [(row["model"], row["seed"]) for row in rows] == [
        ("minent-tiny", "0"),
        ("minent-tiny", "1"),
    ]
    assert rows[1]["knn"] == "50.00" and rows[1]["sha256"] == "" and rows[0]["sha256"]
    assert float(rows[0]["linear"]) == read_index()[0].metrics[1].top1
    assert len(read_index()) == 1 and command("zoo", "verify")[0] == 0
    assert not (zoo / "checkpoints" / ".adding").exists()
    (zoo / "results" / "zoo-digits.csv").write_text("a,b\n1,2\n")
    _, _, error = command("zoo", "add", run, "--id", "minent-tiny", "--results-only")
    assert "table of results is damaged" in error


def reseed(run, *changes):
    """The run as one of seed 1, with other changes of its configuration."""
    text = (run / "config.yaml").read_text()
    for old, new in (("seed: 0\n", "seed: 1\n"), *changes):
        assert old in text
        text = text.replace(old, new)
    (run / "config.yaml").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda run: None, "seed is that of the model: 0", id="seed"),
        pytest.param(
            lambda run: reseed(run, ("num_layers: 3\n", "num_layers: 4\n")),
            r"method_kwargs.num_layers: 3 -> 4\. Only the seed may differ",
            id="configuration",
        ),
        pytest.param(
            lambda run: (
                reseed(run),
                edit(run / "results.json", lambda rows: rows[1].update(protocol="linear, mine")),
            ),
            "protocol of linear is another than the model's: linear, mine",
            id="protocol",
        ),
    ],
)
def test_what_is_no_further_seed_is_refused(spoil, words, run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    before = {name: (zoo / name).read_bytes() for name in files(zoo)}
    spoil(run)
    status, _, error = command("zoo", "add", run, "--id", "minent-tiny", "--results-only")
    assert status == 2 and re.search(words, error), error
    assert {name: (zoo / name).read_bytes() for name in files(zoo)} == before


def test_a_seed_of_no_model_leaves_nothing(run, zoo, command, tmp_path):
    words = ["zoo", "add", run, "--id", "none", "--results-only"]
    assert "model is unknown: none" in command(*words)[2]
    assert "zoo is missing" in command(*words, "--zoo", tmp_path / "nowhere")[2]
    assert files(zoo) == ["models.yaml"] and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda text: "", "no row of it with seed 0", id="gone"),
        pytest.param(
            lambda text: text.replace(",float32,", ",float32,0"), "another file", id="file"
        ),
        pytest.param(
            lambda text: re.sub(r",\d+\.\d\d,", ",1.00,", text, count=1),
            "knn is 1.00 in",
            id="number",
        ),
        pytest.param(
            lambda text: text + text.splitlines()[1].replace("minent-tiny", "other") + "\n",
            "zoo-digits.csv: is no model of the index",
            id="no model",
        ),
    ],
)
def test_a_table_that_is_not_of_the_index_is_found(change, words, run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    path = zoo / "results" / "zoo-digits.csv"
    text = change(path.read_text())
    path.write_text(text) if text else path.unlink()
    status, _, error = command("zoo", "verify")
    assert status == 2 and words in error, error
