"""The loader benchmark: what it measures, prints and writes."""

from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from solo_minent.bench import loaders
from solo_minent.bench.loaders import Measurement, bench_loaders, print_loaders
from solo_minent.cli import main
from solo_minent.errors import UserError


def test_each_loader_and_each_operation_is_measured(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loaders, "WARM_UP_SECONDS", 0.01)
    config = tiny_run("minent", "devices=4")
    found = bench_loaders(config, seconds=0.05, rounds=2)
    assert list(found) == ["image_folder", "device"]
    for measured in found.values():
        assert len(measured.images_per_second) == len(measured.cores) == 2
        assert min(measured.images_per_second) > 0 and min(measured.cores) > 0
        assert {op: len(rates) for op, rates in measured.without.items()} == {
            "affine": 2,
            "color_jitter": 2,
        }
    print_loaders(config, found, tmp_path / "bench.csv", {"sizes": "tiny"})
    printed = capsys.readouterr().out
    assert "image_folder" in printed and "color_jitter" in printed and "dataset digits" in printed
    rows = pd.read_csv(tmp_path / "bench.csv")
    assert rows["format"].tolist() == ["image_folder", "device"]
    assert (rows["views/s"] == 2 * rows["images/s"]).all() and rows["ratio"][0] == 1
    assert {"ms/1000 affine", "cpus", "cpu", "packages", "batch_size"} <= set(rows.columns)
    assert set(rows["device"]) == {"cpu"} and set(rows["sizes"]) == {"tiny"}


@pytest.fixture
def folder_run(tiny_run, tmp_path):
    """A folder of 24 images in two classes, with views that solo-learn can make as well."""
    for i in range(24):
        path = tmp_path / "images" / "train" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * i, 0, 7)).save(path)
    words = [f"data.root={tmp_path / 'images'}", "data.dataset=custom", "data.image_size=16"]
    config = tiny_run("minent", *words, "optimizer.batch_size=8", "data.num_workers=0")
    config.augmentations = [
        {"num_crops": 2, "rrc": {"crop_min_scale": 0.5}, "grayscale": {"prob": 0.2}}
    ]
    config.data.train_images = None
    return config


def test_solo_learns_loaders_take_turns_with_ours(folder_run, monkeypatch):
    monkeypatch.setattr(loaders, "WARM_UP_SECONDS", 0.01)
    found = bench_loaders(folder_run, seconds=0.05, rounds=1)
    assert list(found) == ["image_folder", "dali", "solo-learn", "solo-learn-dali"]
    assert all(measured.rate > 0 for measured in found.values())
    assert all(measured.milliseconds("grayscale") for measured in found.values())


@pytest.mark.parametrize("dataset", ["digits", "stl10"])
def test_sets_that_only_we_read_have_no_such_peer(dataset, tiny_run, capsys):
    config = tiny_run("minent")
    config.data.dataset = dataset
    assert loaders._default_formats(config) == ["image_folder", "device"]
    assert not capsys.readouterr().err


def test_what_solo_learn_cannot_make_is_left_out_and_said(folder_run, monkeypatch, capsys):
    folder_run.augmentations[0]["rrc"] = {"interpolation": "bilinear"}
    assert loaders._default_formats(folder_run) == ["image_folder", "dali"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "solo-learn is left out",
        "solo-learn-dali is left out",
    ]
    with pytest.raises(UserError, match="is not in solo-learn: rrc.interpolation=bilinear"):
        bench_loaders(folder_run, ["solo-learn"])


def test_the_cost_of_an_operation_is_the_time_without_it():
    measured = Measurement(without={"blur": [500.0, 400.0, 900.0]})
    for rate in (250.0, 100.0, 260.0):
        measured.add(rate, 1.0, 0.0, 0.0)
    assert measured.rate == 250
    assert measured.milliseconds("blur") == pytest.approx(4000 - 2000)


@pytest.mark.parametrize("known", [("rss",), ("rss", "uss"), ("rss", "uss", "pss")])
def test_memory_is_as_exact_as_the_system_tells(known, monkeypatch):
    held = SimpleNamespace(**{name: 3 - place for place, name in enumerate(known)})
    process = SimpleNamespace(memory_full_info=lambda: held)
    monkeypatch.setattr(loaders, "_family", lambda: [process, process])
    assert loaders._memory() == 2 * (4 - len(known))


def test_an_operation_left_out_leaves_its_order_whole(tiny_run):
    config = tiny_run("minent")
    entry = {
        "order": ["rrc", "grayscale"],
        "rrc": {"crop_min_scale": 0.5},
        "grayscale": {"prob": 0.5},
    }
    config.augmentations = [entry | {"num_crops": 2}]
    assert loaders._without(config, "grayscale").augmentations[0]["order"] == ["rrc"]
    assert config.augmentations[0]["order"] == ["rrc", "grayscale"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digit"], "recipe is unknown: digit/minent"),
        (["--dataset", "digits", "--recipe", "digits/mec"], "data set is named twice"),
        (["--dataset", "digits", "--format", "tar"], "--format is unknown: tar"),
        (["--dataset", "digits", "--format", "dali"], "kept as pixels"),
        (["--dataset", "digits", "--rounds", "0"], "--rounds is out of range: 0"),
        (["--dataset", "digits", "--seconds", "-1"], "--seconds is out of range: -1.0"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(["bench", "loader", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1


def test_unknown_formats_are_refused_before_any_work(tiny_run):
    with pytest.raises(UserError, match="--format is unknown: zip"):
        bench_loaders(tiny_run("minent"), ["image_folder", "zip"])
