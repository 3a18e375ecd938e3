"""zoo/README.md is what scripts/zoo_readme.py makes of the index and the tables."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from solo_minent.config import load_recipe, load_run
from solo_minent.zoo.index import read_index
from solo_minent.zoo.rows import COLUMNS

ROOT = Path(__file__).parents[2]


def make(zoo):
    words = [sys.executable, str(ROOT / "scripts" / "zoo_readme.py"), "--zoo", str(zoo)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.fixture
def zoo(finished, write_zoo, command):
    """A zoo with a model of ours."""
    folder = write_zoo()
    assert command("zoo", "add", finished, "--id", "minent-tiny", "--hours", "0.25")[0] == 0
    return folder


def test_the_page_of_the_repository_is_made_by_the_script(tmp_path):
    shutil.copy(ROOT / "zoo" / "models.yaml", tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    for path in (ROOT / "zoo" / "results").glob("*.csv"):
        shutil.copy(path, results)
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    made, there = ((folder / "README.md").read_text() for folder in (tmp_path, ROOT / "zoo"))
    assert made == there, "run python scripts/zoo_readme.py"


def test_a_zoo_without_models_says_so(write_zoo):
    zoo = write_zoo()
    assert make(zoo).returncode == 0
    text = (zoo / "README.md").read_text()
    assert "**There are no models yet.**" in text and "## Use" in text


def test_a_model_has_its_numbers_and_commands(zoo):
    assert make(zoo).returncode == 0
    text = (zoo / "README.md").read_text()
    (entry,) = read_index(zoo)
    (row,) = [line for line in text.splitlines() if line.startswith("| `minent-tiny`")]
    for metric in entry.metrics:
        assert f"| {metric.top1:.2f} |" in row and metric.protocol in text
    assert "| 1 of 160 images | 32 |" in row and "5-NN, euclidean, majority vote; 80 images" in text
    assert "| MinEnt |" in row and "0.25, " in row and "MIT" in row
    assert "no models yet" not in text and "## Digits" in text
    recipe = "zoo/checkpoints/minent-tiny/config.yaml"
    assert f"solo-minent knn --recipe {recipe} --target minent-tiny DATA" in text
    # What is shipped as configuration is a recipe that trains the same.
    config = load_recipe(str(zoo / "checkpoints" / "minent-tiny" / "config.yaml"))
    shipped = load_run(zoo / "checkpoints" / "minent-tiny")
    assert config.method_kwargs == shipped.method_kwargs and config.data == shipped.data
    assert config.optimizer == shipped.optimizer and config.augmentations == shipped.augmentations


def test_seeds_are_a_mean_with_its_spread(zoo):
    path = zoo / "results" / "zoo-digits.csv"
    with open(path, newline="") as file:
        (row,) = csv.DictReader(file)
    rows = [{**row, "seed": str(seed), "knn": f"{90 + seed}.00"} for seed in range(3)]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    assert make(zoo).returncode == 0
    (entry,) = read_index(zoo)
    own = next(metric.top1 for metric in entry.metrics if metric.evaluation == "knn")
    assert f"| {own:.2f} (91.00 ± 1.00, 3 seeds) |" in (zoo / "README.md").read_text()


def test_a_training_that_went_on_from_another_run_says_so(zoo):
    words = "# not the same training: that one went on from another run"
    assert make(zoo).returncode == 0 and words not in (zoo / "README.md").read_text()
    path = zoo / "checkpoints" / "minent-tiny" / "environment.json"
    sessions = json.loads(path.read_text())
    sessions[0]["command"].append("--resume-from")
    path.write_text(json.dumps(sessions))
    assert make(zoo).returncode == 0 and words in (zoo / "README.md").read_text()


def test_every_data_set_has_a_table_of_its_own(zoo):
    text = (zoo / "models.yaml").read_text()
    entry = text[text.index("- id: ") :]
    for old, new in (
        ("minent-tiny", "mec-tiny"),
        ("dataset: digits", "dataset: cifar10"),
        ("method: minent", "method: mec"),
    ):
        entry = entry.replace(old, new)
    (zoo / "models.yaml").write_text(text + entry)
    assert make(zoo).returncode == 0
    page = (zoo / "README.md").read_text()
    digits, cifar = page[page.index("## Digits") :].split("## CIFAR-10")
    assert "minent-tiny" in digits and "mec-tiny" not in digits
    assert "| `mec-tiny` | MEC |" in cifar and "`minent-tiny`" not in cifar


def test_published_numbers_stand_beside_ours_with_their_source(zoo):
    source = "https://example.org/README.md"
    (zoo / "results" / "published.csv").write_text(
        "dataset,by,method,backbone,epochs,top1,top5,source\n"
        f"digits,solo-learn,BYOL,ResNet18,1000,92.58,99.79,{source}\n"
        f"cifar10,solo-learn,SwAV,ResNet18,1000,89.17,99.68,{source}\n"
    )
    assert make(zoo).returncode == 0
    text = (zoo / "README.md").read_text()
    assert f"| BYOL | ResNet18 | 1000 | 92.58 | 99.79 | [solo-learn]({source}) |" in text
    assert "SwAV" not in text


def test_every_published_number_has_a_source_at_a_commit():
    with open(ROOT / "zoo" / "results" / "published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 30
    for row in rows:
        assert row["source"].startswith("https://github.com/") and "/blob/" in row["source"]
        assert 0 < float(row["top1"]) < 100
    best = {(r["by"], r["method"]): r["top1"] for r in rows if r["dataset"] == "cifar10"}
    assert best["solo-learn", "All4One"] == "93.24"
    assert best["its authors", "CorInfoMax"] == "93.18"


def test_models_of_others_say_so(values, write_zoo):
    zoo = write_zoo(values)
    assert make(zoo).returncode == 0
    text = (zoo / "README.md").read_text()
    assert "## Models of others" in text and "Not ours" in text
    assert (
        "| `tiny` | MinEnt | digits | timm:resnet10t | MIT | <https://example.org/models> |" in text
    )


def test_a_row_of_no_model_is_one_line(zoo):
    path = zoo / "results" / "zoo-digits.csv"
    path.write_text(path.read_text().replace("minent-tiny", "gone"))
    done = make(zoo)
    assert done.returncode == 2 and done.stderr.startswith("error: row is of no model: gone")
    assert len(done.stderr.splitlines()) == 1
