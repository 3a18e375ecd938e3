"""`zoo add`: a finished run becomes a model with receipts, whole or not at all."""

import json
import re
import time
from threading import Thread

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from solo_minent.files import sha256
from solo_minent.zoo import load_backbone
from solo_minent.zoo.index import adding, read_index

RECORDS = ["config.yaml", "environment.json", "log.csv", "results.json"]
LOCAL = ["data.num_workers=0", "accelerator=cpu"]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_finished_run_becomes_a_model(run, zoo, command):
    status, out, error = command("zoo", "add", run, "--id", "minent-tiny", "--hours", "0.5")
    assert status == 0 and out.startswith("added minent-tiny"), error
    folder = zoo / "checkpoints" / "minent-tiny"
    assert files(folder) == RECORDS and not (zoo / "checkpoints" / ".adding").exists()
    shipped = zoo / "checkpoints" / "minent-tiny.safetensors"
    assert shipped.read_bytes() == (run / "backbone.safetensors").read_bytes()
    (entry,) = read_index()
    knn, linear = results_of(run)
    assert [m.evaluation for m in entry.metrics] == ["knn", "linear", "online"]
    assert [m.top1 for m in entry.metrics[:2]] == [round(knn["top1"], 2), round(linear["top1"], 2)]
    assert entry.metrics[0].protocol == knn["protocol"] and entry.metrics[0].images == 80
    assert (entry.ours, entry.licence, entry.hours, entry.file.dtype) == (
        *(True, "MIT", 0.5),
        "float32",
    )
    assert (entry.recipe, entry.dataset, entry.epochs, entry.batch_size, entry.seed) == (
        *("digits/minent", "digits"),
        *(1, 32, 0),
    )
    assert entry.train_images == 160
    assert entry.file.sha256 == sha256(shipped) and entry.feature_dim == 16
    status, out, error = command("zoo", "verify")
    assert status == 0 and "2 checks, nothing wrong" in out, error


def test_nothing_of_this_machine_is_shipped(run, zoo, command, tmp_path):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    for name in files(zoo):
        assert str(tmp_path).encode() not in (zoo / name).read_bytes(), name
        assert b"/tmp" not in (zoo / name).read_bytes(), name
    config = yaml.safe_load((zoo / "checkpoints/minent-tiny/config.yaml").read_text())
    assert (config["output_dir"], config["folder"], config["data"]["root"]) == ("runs", None, None)


def test_one_command_reproduces_the_stated_accuracy(run, zoo, command, tmp_path):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    words = ["--recipe", "digits/minent", "data.train_images=160", "data.val_images=80", *LOCAL]
    words += [f"output_dir={tmp_path / 'again'}", "--target", "minent-tiny"]
    assert command("knn", *words)[0] == 0
    (path,) = (tmp_path / "again").rglob("results.json")
    (result,) = results_of(path.parent)
    metric = read_index()[0].metrics[0]
    assert round(result["top1"], 2) == metric.top1 and result["protocol"] == metric.protocol
    assert result["checkpoint_sha256"] == read_index()[0].file.sha256


def test_float16_is_shipped_with_numbers_of_its_own(run, zoo, command):
    words = ["--id", "minent-half", "--float16", "--max-change", "5", *LOCAL]
    status, out, error = command("zoo", "add", run, *words)
    assert status == 0, error
    shipped = zoo / "checkpoints" / "minent-half.safetensors"
    assert shipped.stat().st_size < 0.6 * (run / "backbone.safetensors").stat().st_size
    kinds = {v.dtype for v in load_file(shipped).values() if v.is_floating_point()}
    assert kinds == {torch.float16}
    folder = zoo / "checkpoints" / "minent-half"
    assert files(folder) == RECORDS
    results = results_of(folder)
    assert {r["checkpoint_sha256"] for r in results} == {sha256(shipped)}
    assert {r["target"] for r in results} == {"minent-half"}
    (entry,) = read_index()
    assert [m.top1 for m in entry.metrics[:2]] == [round(r["top1"], 2) for r in results]
    assert load_backbone("minent-half").backbone.conv1.weight.dtype == torch.float32
    assert command("zoo", "verify")[0] == 0


def test_float16_that_costs_accuracy_is_refused(run, zoo, command, monkeypatch):
    def coarse(name, tensor):
        if not tensor.is_floating_point():
            return tensor
        return torch.zeros_like(tensor).half() if tensor.ndim > 1 else tensor.half()

    monkeypatch.setattr("solo_minent.zoo.add._half", coarse)
    status, _, error = command("zoo", "add", run, "--id", "minent-half", "--float16", *LOCAL)
    assert status == 2 and "float16 changes kNN accuracy" in error
    assert files(zoo) == ["models.yaml"] and read_index() == []


def test_weights_beyond_float16_are_refused(run, zoo, command):
    path = run / "backbone.safetensors"
    tensors = load_file(path)
    tensors["bn1.running_var"] += 1e5
    save_file(tensors, path)
    edit(
        run / "results.json", lambda rows: [r.update(checkpoint_sha256=sha256(path)) for r in rows]
    )
    _, _, error = command("zoo", "add", run, "--id", "minent-half", "--float16", *LOCAL)
    assert "weights do not fit in float16: bn1.running_var" in error
    assert files(zoo) == ["models.yaml"]


def test_a_model_is_not_overwritten(run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    before = {name: (zoo / name).read_bytes() for name in files(zoo)}
    assert "model is there: minent-tiny" in command("zoo", "add", run, "--id", "minent-tiny")[2]
    assert {name: (zoo / name).read_bytes() for name in files(zoo)} == before
    (zoo / "checkpoints" / "other.safetensors").write_bytes(b"mine")
    assert "model is there: other" in command("zoo", "add", run, "--id", "other")[2]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *[
            (lambda run, name=name: (run / name).unlink(), f"{name} is missing")
            for name in ("results.json", "log.csv", "environment.json", "backbone.safetensors")
        ],
        (
            lambda run: edit(run / "results.json", lambda rows: rows.pop(0)),
            "results are missing: .* no knn of backbone.safetensors",
        ),
        (
            lambda run: edit(run / "results.json", lambda rows: rows.pop(1)),
            "no linear of backbone.safetensors",
        ),
        (
            lambda run: edit(
                run / "results.json", lambda rows: rows[0].update(checkpoint_sha256="0" * 64)
            ),
            "no knn of backbone.safetensors",
        ),
        (
            lambda run: (run / "config.yaml").write_text(
                (run / "config.yaml").read_text().replace("max_epochs: 1\n", "max_epochs: 9\n")
            ),
            "run is not finished: .*epoch 1 of 9",
        ),
        (lambda run: (run / "environment.json").write_text("{}"), "environment is damaged"),
        (lambda run: (run / "results.json").write_text("[" * 9999), "results are damaged"),
    ],
)
def test_a_run_that_is_not_finished_is_refused(spoil, words, run, zoo, command):
    spoil(run)
    status, _, error = command("zoo", "add", run, "--id", "minent-tiny")
    assert status == 2 and re.search(words, error), error
    assert files(zoo) == ["models.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--id", "../up"], "id is ../up"),
        (["--id", "Big"], "id is Big"),
        (["--id", "tiny", "--url", "file:///x"], "files[0].urls[0] is file:///x"),
        (["--id", "tiny", "--max-change", "-1"], "--max-change is out of range"),
        (["--id", "tiny", "--hours", "-1"], "hours is out of range"),
        ([], "--id"),
    ],
)
def test_wrong_words_leave_nothing(words, message, run, zoo, command):
    status, _, error = command("zoo", "add", run, *words)
    assert status == 2 and message in error, error
    assert files(zoo) == ["models.yaml"]
    assert not list(zoo.parent.glob("up*"))


def test_a_file_too_large_for_a_repository(run, zoo, command, monkeypatch):
    monkeypatch.setattr("solo_minent.zoo.add.MAX_SHIPPED", 1000)
    _, _, error = command("zoo", "add", run, "--id", "minent-tiny")
    assert "file is too large for a repository" in error and "--float16" in error
    assert files(zoo) == ["models.yaml"]


def test_a_second_one_waits_for_the_first(zoo):
    order = []

    def second():
        with adding(zoo):
            order.append("second")

    thread = Thread(target=second)
    with adding(zoo):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_what_a_killed_one_left_is_named(run, zoo, command):
    (zoo / "checkpoints" / ".adding").mkdir(parents=True)
    _, _, error = command("zoo", "add", run, "--id", "minent-tiny")
    assert "another model is being added" in error and "rm -r" in error


def test_a_model_that_could_not_be_written_leaves_no_row(run, zoo, command, monkeypatch):
    def full(*arguments):
        raise OSError(28, "no space")

    monkeypatch.setattr("solo_minent.zoo.add.write_index", full)
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 2
    assert files(zoo) == ["models.yaml"]


def test_a_full_disk_is_that_of_the_zoo(run, zoo, command, monkeypatch):
    def full(source, target=None, **_):
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr("solo_minent.files.os.replace", full)
    _, _, error = command("zoo", "add", run, "--id", "minent-tiny")
    assert f"disk is full: {zoo}/checkpoints/.adding/minent-tiny.safetensors" in error
    assert files(zoo) == ["models.yaml"]


def test_the_same_weights_are_not_added_twice(run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    before = {name: (zoo / name).read_bytes() for name in files(zoo)}
    assert "weights are there: minent-tiny" in command("zoo", "add", run, "--id", "twin")[2]
    assert {name: (zoo / name).read_bytes() for name in files(zoo)} == before


def test_an_id_that_reads_as_another_is_taken(run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    before = files(zoo)
    assert "model is there: minent-tiny" in command("zoo", "add", run, "--id", "minent.tiny")[2]
    assert files(zoo) == before


def test_results_of_fewer_or_other_images_are_not_the_models(run, zoo, command):
    def more(rows):
        for changes in (
            {"test_images": 20},
            {"image_size": 32},
            {"normalization": [[0.5] * 3] * 2},
        ):
            rows += [{**row, **changes, "top1": 99.0} for row in rows[:2]]

    edit(run / "results.json", more)
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    (entry,) = read_index()
    assert [m.evaluation for m in entry.metrics] == ["knn", "linear", "online"]
    assert 99.0 not in [m.top1 for m in entry.metrics]


def test_a_run_on_a_list_of_this_machine_is_refused(run, zoo, command):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("file_list: null", "file_list: mine.txt"))
    _, _, error = command("zoo", "add", run, "--id", "minent-tiny")
    assert "run is not one that others can repeat" in error and "mine.txt" in error
    assert files(zoo) == ["models.yaml"]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("results.json", lambda rows: rows[0].update(top1=99.0), "knn of the index is"),
        ("results.json", lambda rows: rows[0].update(checkpoint_sha256="0"), "of another file"),
        ("results.json", lambda rows: rows.clear(), "its records have no such number"),
    ],
)
def test_numbers_that_are_not_those_of_the_records_are_found(
    file, change, words, run, zoo, command
):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    edit(zoo / "checkpoints" / "minent-tiny" / file, change)
    status, _, error = command("zoo", "verify")
    assert status == 2 and words in error


def test_an_index_that_is_not_that_of_the_configuration_is_found(run, zoo, command):
    assert command("zoo", "add", run, "--id", "minent-tiny")[0] == 0
    text = (zoo / "models.yaml").read_text()
    (zoo / "models.yaml").write_text(text.replace("batch_size: 32", "batch_size: 64"))
    assert "batch_size is 32 in checkpoints/" in command("zoo", "verify")[2]
    (zoo / "models.yaml").write_text(text)
    (zoo / "checkpoints" / "minent-tiny" / "log.csv").unlink()
    assert "minent-tiny/log.csv: is missing" in command("zoo", "verify")[2]


def test_nothing_is_added_to_an_installed_package(run, command, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    for name in ("__init__.py", "models.yaml"):
        (package / name).write_text("version: 1\nmodels: []\n" if name[0] == "m" else "")
    _, _, error = command("zoo", "add", run, "--id", "tiny", "--zoo", package)
    assert "zoo belongs to the installed package" in error and files(package) == [
        "__init__.py",
        "models.yaml",
    ]
