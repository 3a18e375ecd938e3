"""`report`: where its files go, and what it says when something is missing."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from solo_minent.errors import UserError
from solo_minent.report import report

ONE = {"report.html", "report.png", "report_monitors.png", "report_neighbours.png"}
ONE |= {"report_pca.png", "report_confusion.png"}


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_run_has_its_page_in_its_folder(make_run, make_result):
    config = make_run("twist", results=[make_result()])
    before = {name: (config.run_dir / name).read_bytes() for name in files_of(config.run_dir)}
    page = report([config], progress=False)
    assert page == config.run_dir / "report.html"
    made = {name for name in files_of(config.run_dir) if not name.startswith("features/")}
    assert made - before.keys() == ONE
    assert {name: (config.run_dir / name).read_bytes() for name in before} == before
    first = page.read_bytes()
    assert report([config], progress=False).read_bytes() == first


def test_several_runs_have_theirs_in_the_folder_above(make_run, tmp_path, monkeypatch):
    a, b = make_run("twist"), make_run("mec")
    page = report([a, b], features=False, csv=tmp_path / "all.csv", progress=False)
    assert page == tmp_path / "runs" / "digits" / "report.html"
    assert files_of(page.parent / "report_files") == {"curves.png", "monitors.png"}
    columns = "run,method,dataset,target,evaluation,protocol,seed,date,checkpoint_sha256"
    assert (tmp_path / "all.csv").read_text() == f"{columns}\n"
    monkeypatch.chdir(tmp_path)
    there = report([a, b], out=tmp_path / "x" / "two.html", progress=False)
    assert files_of(tmp_path / "x") == {"two.html"} | {
        f"two_files/{name}.png"
        for name in (
            "curves", "monitors", "neighbours-1-twist-default", "neighbours-2-mec-default",
            "pca-1-twist-default", "pca-2-mec-default", "confusion-1-twist-default",
            "confusion-2-mec-default",
        )
    }  # fmt: skip
    assert "2 runs on digits" in there.read_text(encoding="utf-8")
    assert report([a], out=tmp_path / "folder", features=False) == tmp_path / "folder/report.html"


def test_data_that_is_not_there_is_said_on_the_page(make_run, tmp_path):
    config = make_run("twist")
    nowhere = str(tmp_path / "nowhere")
    away = replace(config, data=replace(config.data, dataset="cifar10", root=nowhere))
    unfinished = make_run("mec")
    (unfinished.run_dir / "backbone.safetensors").unlink()
    text = report([away, unfinished], progress=False).read_text(encoding="utf-8")
    assert "cifar10/twist/default has no neighbours, map and confusions: " in text
    assert nowhere in text
    assert "digits/mec/default has no neighbours, map and confusions: backbone weights" in text
    assert "not finished" in text and "No results yet" in text
    assert "2 runs on cifar10, digits" in text


def test_a_place_that_cannot_be_written_is_found_before_the_work(make_run, tmp_path, monkeypatch):
    config = make_run("twist")
    monkeypatch.setattr("solo_minent.report.write_page", None)
    (tmp_path / "file").touch()
    (tmp_path / "page.html").mkdir()
    for options, what in (
        ({"out": tmp_path / "file" / "a.html"}, "file is no folder"),
        ({"out": tmp_path / "page.html"}, "it is a folder"),
        ({"csv": tmp_path}, "it is a folder"),
        ({"out": Path("/proc/report")}, "/proc belongs to the system"),
    ):
        with pytest.raises(UserError, match=f"report cannot be written: .*{what}"):
            report([config], **options)


def test_a_damaged_run_among_others_is_named_and_nothing_is_written(make_run, tmp_path):
    good, bad = make_run("twist"), make_run("mec")
    (bad.run_dir / "log.csv").write_text("epoch\nx\n")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=f"log is damaged: {bad.run_dir}"):
        report([good, bad], progress=False)
    assert files_of(tmp_path) == before


def test_evaluate_fills_the_table_and_the_csv(make_run, tmp_path, capsys):
    config = make_run("twist")
    page = report([config], csv=tmp_path / "r.csv", evaluate=True, features=False, progress=False)
    printed = capsys.readouterr().out
    for row in ("raw pixels", "untrained backbone", "trained backbone"):
        assert row in printed
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["target"], r["evaluation"]) for r in rows} == {
        (target, evaluation)
        for target in ("trained", "random", "pixels")
        for evaluation in ("linear", "knn", "few_shot")
    }
    text = page.read_text(encoding="utf-8")
    for row in rows:
        assert f'<span class="value">{float(row["top1"]):.2f}' in text
