"""Every command that evaluates, on one short run, as a user types it."""

import json

import pytest
import torch

from solo_minent.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder after two epochs on a few digits."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    arguments = [
        "pretrain",
        "--recipe",
        "digits/twist",
        "max_epochs=2",
        "data.train_images=320",
        "data.val_images=80",
        "data.num_workers=0",
        "evaluation.linear.max_epochs=5",
        f"output_dir={folder}",
    ]
    assert main(arguments) == 0
    return folder / "digits" / "twist" / "default"


def results(run, evaluation):
    found = json.loads((run / "results.json").read_text())
    return [result for result in found if result["evaluation"] == evaluation]


def test_linear(run, capsys):
    assert main(["linear", str(run)]) == 0
    (result,) = results(run, "linear")
    assert f"top1 {result['top1']:.2f}" in capsys.readouterr().out
    assert (result["train_images"], result["test_images"]) == (320, 80)
    assert len(result["checkpoint_sha256"]) == 64


def test_knn_makes_the_whole_grid(run):
    command = ["knn", str(run), "--k", "1,5", "--temperature", "none,0.07"]
    assert main([*command, "--distance", "euclidean,cosine"]) == 0
    assert len({result["protocol"] for result in results(run, "knn")}) == 8


def test_another_backbone_stands_beside_the_run(run):
    assert main(["knn", str(run), "--k", "3", "--target", "random:resnet18"]) == 0
    assert "random:resnet18" in {result["target"] for result in results(run, "knn")}


def test_finetune(run):
    command = ["finetune", str(run), "--percent", "50", "evaluation.finetune.max_epochs=1"]
    assert main([*command, "evaluation.finetune.batch_size=32"]) == 0
    (result,) = results(run, "finetune")
    assert 0 <= result["top1"] <= 100


def test_cluster(run):
    assert main(["cluster", str(run)]) == 0
    assert all(0 <= result["nmi"] <= 100 for result in results(run, "cluster"))


def test_transfer(run):
    assert main(["transfer", str(run), "--dataset", "digits"]) == 0
    (result,) = results(run, "transfer")
    assert result["dataset"] == "digits"


def test_umap_or_its_fallback_draws(run):
    assert main(["umap", str(run), "--method", "pca"]) == 0
    assert (run / "pca.png").read_bytes().startswith(b"\x89PNG")


def test_report_is_one_page(run, tmp_path):
    table = tmp_path / "results.csv"
    assert main(["report", str(run), "--csv", str(table)]) == 0
    assert "<html" in (run / "report.html").read_text()
    assert "linear" in table.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn", "--k", "5,x"], "--k is no list of numbers: 5,x"),
        (["linear", "--protocol", "mecc"], "protocol of linear is unknown: mecc"),
        (["finetune", "--percent", "0"], "--percent is out of range: 0"),
        (["cluster", "--clusters", "1"], "--clusters is out of range: 1"),
        (["cluster", "--split", "val"], "val"),
        (["umap", "--method", "tsne"], "tsne"),
        (["transfer", "--dataset", "nowhere"], "nowhere"),
        (["linear", "another/run"], "run folder is missing: another/run"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, message):
    before = (run / "results.json").read_bytes() if (run / "results.json").exists() else None
    command, *rest = arguments
    assert main([command, str(run), *rest]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and message in error
    after = (run / "results.json").read_bytes() if (run / "results.json").exists() else None
    assert before == after


def test_two_runs_are_one_too_many_for_linear(run, capsys):
    assert main(["linear", str(run), str(run)]) == 2
    assert "runs are more than one" in capsys.readouterr().err
