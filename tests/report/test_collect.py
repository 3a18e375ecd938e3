"""Run folders are found, read once and checked."""

from dataclasses import replace

import pytest

from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.report.collect import find_runs, labels_of, read_runs


def test_runs_are_found_below_a_folder(make_run, tmp_path):
    a, b = (make_run("twist", f"name={name}").run_dir for name in ("b", "a"))
    runs = tmp_path / "runs"
    assert find_runs([runs]) == [b, a]
    assert find_runs([a, str(b)]) == [a, b]
    (runs / "report.html").touch()
    (runs / "report_files").mkdir()
    assert find_runs(sorted(runs.iterdir())) == [b, a]
    for path, what in ((runs / "nothing", "is missing"), (tmp_path / "empty", "holds no run")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"run folder {what}: {path}"):
            find_runs([runs, path])


def test_no_run_is_an_error_and_the_same_folder_counts_once(make_run):
    with pytest.raises(UserError, match="run is not named"):
        read_runs([])
    config, other = make_run("twist"), make_run("mec")
    again = replace(config, folder=f"{config.folder}/../{config.name}", seed=7)
    runs = read_runs([config, other, again])
    assert [run.config for run in runs] == [config, other]
    assert [run.weights for run in runs] == [
        sha256(each.run_dir / "backbone.safetensors") for each in (config, other)
    ]
    (config.run_dir / "backbone.safetensors").unlink()
    (config.run_dir / "environment.json").unlink()
    (unfinished,) = read_runs([config])
    assert unfinished.weights is None and unfinished.environment == {}
    assert unfinished.log["epoch"].tolist() == list(range(7)) and unfinished.results == []


def test_labels_are_as_short_as_they_may_be(make_run):
    twist, mec = make_run("twist"), make_run("mec")
    assert labels_of([twist, mec]) == ["twist/default", "mec/default"]
    elsewhere = replace(twist, data=replace(twist.data, dataset="cifar10"))
    assert labels_of([twist, elsewhere]) == ["digits/twist/default", "cifar10/twist/default"]
    copy = replace(twist, folder="/a/<b>\udcff")
    assert labels_of([twist, copy]) == [str(twist.run_dir), "/a/<b>?"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("log.csv", None, "log is missing: {path}"),
        ("log.csv", b"epoch,loss\n", "log is damaged: {path} (no epochs)"),
        ("log.csv", b"epoch,a\n1,x\n", "log is damaged: {path} (not all values are numbers"),
        ("log.csv", b"\xff\xfe\x00", "log is damaged: {path}"),
        ("results.json", b"{", "results are damaged: {path}"),
        ("results.json", b'[{"target": "trained"}]', "results are damaged: {path} (result 0 lacks"),
        ("environment.json", b"[", "environment is damaged: {path}"),
        ("environment.json", b"[]", "environment is damaged: {path}"),
    ],
)
def test_a_damaged_file_is_named(file, content, message, make_run):
    good, bad = make_run("mec"), make_run("twist")
    path = bad.run_dir / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_runs([good, bad])
    assert str(caught.value).startswith(message.format(path=path))
