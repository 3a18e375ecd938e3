"""What `report --evaluate` runs and leaves out."""

import json

import pytest

from solo_minent.config import load_run
from solo_minent.errors import UserError
from solo_minent.report.evaluate import check_evaluation, evaluate_baselines


def test_large_pixels_and_rare_classes_are_left_out(make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = make_run(
        "twist", "data.train_images=30", "data.image_size=72", "augmentations.0.crop_size=72"
    )
    assert evaluate_baselines(config, progress=False) == [
        "raw pixels: 15,552 features an image of 72 px",
        "1-NN, 5 labels a class: a class has 3 training images of 5, see data.train_images",
    ]
    printed = capsys.readouterr().out
    assert "raw pixels │" not in printed and "15,552 features" in printed
    stored = json.loads((config.run_dir / "results.json").read_text())
    assert {(r["target"], r["evaluation"]) for r in stored} == {
        (target, evaluation) for target in ("trained", "random") for evaluation in ("linear", "knn")
    }


def test_a_run_that_cannot_be_evaluated_is_found_before(make_run, tmp_path):
    config = make_run("twist")
    check_evaluation(config)
    with pytest.raises(UserError, match="evaluation.knn_k is out of range: 5"):
        check_evaluation(load_run(config.run_dir, ["data.train_images=4"]))
    (config.run_dir / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="backbone weights are missing"):
        check_evaluation(config)
