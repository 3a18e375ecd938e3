"""kNN of a run, stored in its results."""

from __future__ import annotations

import pytest

from solo_minent.checkpoint import read_results
from solo_minent.errors import UserError
from solo_minent.evaluation.knn import few_shot_1nn, few_shot_eval, knn_accuracy, knn_eval
from solo_minent.evaluation.targets import features_of, load_target


def test_eval_stores_every_setting_of_the_grid(tiny_run):
    config = tiny_run("minent")
    target = load_target(config, "pixels")
    results = knn_eval(config, target, [1, 5], [None, 0.07], ["cosine", "euclidean"], False)
    assert len(results) == 8
    stored = read_results(config.run_dir)
    assert [r["protocol"] for r in stored] == [r["protocol"] for r in results]
    assert results[0]["protocol"] == "1-NN, cosine, majority vote"
    assert results[7]["protocol"] == "5-NN, euclidean, weights exp(sim / 0.07)"
    assert {(r["evaluation"], r["train_images"], r["test_images"]) for r in results} == {
        ("knn", 160, 80)
    }
    features = features_of(target, config, progress=False)
    assert results[6]["top1"] == 100 * knn_accuracy(*features, 5, None, "euclidean")
    few = few_shot_eval(config, target, features=features)
    assert few["evaluation"] == "few_shot"
    expected = few_shot_1nn(*features, 5, 20, config.seed)
    assert (few["top1"], few["std"]) == tuple(100 * v for v in expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (([161], [None], ["cosine"]), "--k is out of range: 161"),
        (([5], [-1.0], ["cosine"]), "temperature"),
        (([5], [None], ["manhattan"]), "unknown distance"),
        (([], [None], ["cosine"]), "empty kNN grid"),
    ],
)
def test_eval_refuses_before_any_features(tiny_run, settings, words):
    config = tiny_run("minent")
    target = load_target(config, "pixels")
    target.backbone.forward = None  # would fail if it was called
    with pytest.raises(UserError, match=words):
        knn_eval(config, target, *settings, progress=False)
