"""Clusters against classes: the measures, k-means, and whole runs that predict classes."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.datasets import make_blobs
from sklearn.metrics.cluster import contingency_matrix

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import read_results
from solo_minent.data.loaders import eval_loader
from solo_minent.errors import UserError
from solo_minent.evaluation.cluster import cluster_eval, cluster_metrics, kmeans
from solo_minent.evaluation.targets import load_target
from solo_minent.files import sha256
from solo_minent.pretrain import pretrain

RNG = np.random.default_rng(0)
CASES = {
    "random": (RNG.integers(0, 10, 500), RNG.integers(0, 10, 500)),
    "more clusters": (RNG.integers(0, 64, 300), RNG.integers(0, 5, 300)),
    "more classes": (RNG.integers(0, 3, 300), RNG.integers(0, 40, 300)),
    "one cluster": (np.zeros(60, int), RNG.integers(0, 4, 60)),
    "one class": (RNG.integers(0, 4, 60), np.zeros(60, int)),
    "one of both": (np.zeros(9, int), np.zeros(9, int)),
    "all different": (np.arange(50), RNG.integers(0, 5, 50)),
    "every image its own class": (np.arange(30)[::-1], np.arange(30)),
    "one image": (np.array([7]), np.array([3])),
    "renamed": ((CASE := RNG.integers(0, 6, 200)) * 1000 + 17, CASE),
    "noisy": (np.where(RNG.random(400) < 0.3, RNG.integers(0, 9, 400), 4), RNG.integers(0, 9, 400)),
    "large numbers": (RNG.integers(0, 3, 80) * 10**12, RNG.integers(0, 3, 80)),
}


@pytest.mark.parametrize("case", CASES)
def test_measures_equal_those_of_scikit_learn_and_scipy(case):
    predicted, truth = CASES[case]
    found = cluster_metrics(predicted, truth)
    table = contingency_matrix(truth, predicted)
    rows, columns = linear_sum_assignment(table, maximize=True)
    expected = {
        "nmi": metrics.normalized_mutual_info_score(truth, predicted),
        "ami": metrics.adjusted_mutual_info_score(truth, predicted),
        "ari": metrics.adjusted_rand_score(truth, predicted),
        "fmi": metrics.fowlkes_mallows_score(truth, predicted),
        "accuracy": table[rows, columns].sum() / len(truth),
        "purity": table.max(axis=0).sum() / len(truth),
    }
    assert found.pop("used_clusters") == len(set(predicted.tolist()))
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (6, 3), (2, 5), (1, 4), (5, 1)])
def test_accuracy_is_the_best_of_all_one_to_one_matchings(clusters, classes):
    rng = np.random.default_rng(clusters * 10 + classes)
    for _ in range(20):
        predicted, truth = rng.integers(0, clusters, 25), rng.integers(0, classes, 25)
        # A matching gives each cluster a class of its own, or a number that is no class.
        numbers = range(max(clusters, classes))
        best = max(
            np.mean(np.array(names)[predicted] == truth)
            for names in permutations(numbers, clusters)
        )
        assert cluster_metrics(predicted, truth)["accuracy"] == pytest.approx(100 * best)


def test_by_hand():
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    truth = torch.tensor([5, 5, 6, 6, 6, 5, 5, 7])
    ranked = [[0, 1], [0, 1], [0, 1], [1, 0], [1, 2], [2, 0], [2, 1], [2, 1]]
    found = cluster_metrics(predicted, truth, ranked)
    # Each cluster keeps its most frequent class: 2 + 2 + 2 of 8.
    assert found["purity"] == 75.0
    # 5 <-> 0 and 6 <-> 1 leave 7 <-> 2: 2 + 2 + 1 of 8.
    assert found["accuracy"] == 62.5
    # Those five, image 2 (6 <-> 1 is second) and image 5 (5 <-> 0 is second): 7 of 8.
    assert found["top5"] == 87.5
    assert found["used_clusters"] == 3
    assert cluster_metrics(predicted, truth).keys() == found.keys() - {"top5"}


def test_a_class_without_a_cluster_is_never_among_the_best():
    found = cluster_metrics([0, 0, 0, 0], [0, 0, 0, 1], [[0, 1]] * 4)
    assert found["accuracy"] == found["top5"] == 75.0


def test_thousands_of_clusters():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 500, 8000)
    predicted = np.where(rng.random(8000) < 0.5, truth, rng.integers(0, 6000, 8000))
    rows, columns = linear_sum_assignment(table := contingency_matrix(truth, predicted), True)
    assert cluster_metrics(predicted, truth)["accuracy"] == pytest.approx(
        100 * table[rows, columns].sum() / 8000
    )


@pytest.mark.parametrize(
    ("predicted", "truth", "ranked", "words"),
    [
        ([], [], None, "clusters are not one number an image"),
        ([[0], [1]], [0, 1], None, "clusters are not one number an image"),
        ([0, 1], [0, 1, 1], None, "clusters and classes do not match: 2 and 3"),
        ([0, -1], [0, 1], None, "clusters are negative: -1"),
        ([0, 1], [0, -1], None, "classes are negative: -1"),
        ([0.0, 1.0], [0, 1], None, "clusters are not integers: float64"),
        ([0, 1], [True, False], None, "classes are not integers: bool"),
        ([0, 1], [0, 1], [[0, 1]], "ranked clusters do not match"),
        ([0, 1], [0, 1], [[0.5], [1]], "ranked clusters are not integers"),
    ],
)
def test_what_is_no_clustering_is_refused(predicted, truth, ranked, words):
    with pytest.raises(UserError, match=words):
        cluster_metrics(predicted, truth, ranked)


@pytest.mark.parametrize("large", [False, True])
def test_kmeans_finds_blobs(large, monkeypatch):
    if large:
        monkeypatch.setattr("solo_minent.evaluation.cluster.LARGE", 100)
    centers = 20 * np.eye(6, 8)
    features, truth = make_blobs(300, centers=centers, cluster_std=0.5, random_state=0)
    found = kmeans(torch.from_numpy(features).float(), 6, seed=3)
    assert cluster_metrics(found, truth)["accuracy"] == 100.0
    assert np.array_equal(found, kmeans(torch.from_numpy(features).float(), 6, seed=3))


def test_kmeans_refuses_what_is_not_finite():
    with pytest.raises(UserError, match="features are not finite"):
        kmeans(torch.tensor([[0.0], [1.0], [torch.nan]]), 2)


def test_kmeans_of_equal_images_uses_one_cluster():
    assert len(set(kmeans(torch.ones(20, 3), 4))) == 1


def test_twist_predicts_the_classes_of_its_head(tiny_run):
    config = tiny_run("twist")
    pretrain(config)
    (result,) = cluster_eval(config, load_target(config))
    features, truth, state = by_hand(config)
    hidden = mlp_by_hand(features, state, "projector.mlp.")
    mean, var = state["projector.norm.running_mean"], state["projector.norm.running_var"]
    probabilities = ((hidden - mean) / (var + 1e-5).sqrt()).softmax(1)
    ranked = probabilities.argsort(1, descending=True)[:, :5]
    expected = cluster_metrics(ranked[:, 0], truth, ranked)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["evaluation"] == "cluster" and result["head"] == "16"
    assert "head 16, argmax of softmax, eval mode" in result["protocol"]
    assert "test split" in result["protocol"] and result["test_images"] == 80
    assert result["checkpoint_sha256"] == sha256(config.run_dir / "checkpoints/last.ckpt")
    assert result["epoch"] == 2
    assert read_results(config.run_dir) == [result]
    # The other split is another result.
    (other,) = cluster_eval(config, load_target(config), "train")
    assert other["train_images"] == 160
    assert read_results(config.run_dir) == [result, other]


def test_every_head_of_minent_predicts_classes(tiny_run):
    config = tiny_run("minent")
    pretrain(config)
    results = cluster_eval(config, load_target(config))
    assert [result["head"] for result in results] == ["16", "8"]
    features, truth, state = by_hand(config)
    for number, result in enumerate(results):
        outputs = mlp_by_hand(features, state, f"projector.heads.{number}.")
        standard = (outputs - outputs.mean(0)) / (outputs.var(0, unbiased=False) + 1e-5).sqrt()
        expected = cluster_metrics(standard.argmax(1), truth)
        assert {name: result[name] for name in expected} == pytest.approx(expected)
        assert "top5" not in result
    assert read_results(config.run_dir) == results


def by_hand(config):
    """Features of the test images, their labels, and the checkpoint's weights."""
    path = config.run_dir / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    backbone = build_backbone(
        config.backbone.name, config.backbone.stem, **config.backbone.kwargs
    ).eval()
    backbone.load_state_dict(host.backbone_state(state))
    ((images, truth),) = eval_loader(config, "test", 1000)
    with torch.inference_mode():
        return backbone(images), truth, state


def mlp_by_hand(x, state, prefix):
    """Three linear layers, batch norm in eval mode and ReLU between them."""
    for layer in (0, 3, 6):
        x = F.linear(x, state[f"{prefix}{layer}.weight"], state[f"{prefix}{layer}.bias"])
        if layer < 6:
            norm = {
                key: state[f"{prefix}{layer + 1}.{key}"]
                for key in ("running_mean", "running_var", "weight", "bias")
            }
            x = F.relu(F.batch_norm(x, **norm))
    return x


def test_targets_without_classes_are_clustered(tiny_run):
    config = tiny_run("mec")
    target = load_target(config, "pixels")
    (result,) = cluster_eval(config, target)
    ((images, truth),) = eval_loader(config, "test", 1000)
    expected = cluster_metrics(kmeans(images.flatten(1), 10, config.seed), truth)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["target"] == "pixels" and result["accuracy"] > 40
    assert "k-means on the features of the backbone, 10 clusters" in result["protocol"]
    (other,) = cluster_eval(config, target, clusters=4)
    assert other["used_clusters"] == 4 and len(read_results(config.run_dir)) == 2


@pytest.mark.parametrize("clusters", [1, 0, -3, 81])
def test_the_number_of_clusters_is_checked(tiny_run, clusters):
    config = tiny_run("mec")
    with pytest.raises(UserError, match=f"--clusters is out of range: {clusters}.*at most 80"):
        cluster_eval(config, load_target(config, "pixels"), clusters=clusters)
    assert read_results(config.run_dir) == []


def test_another_split_is_refused(tiny_run):
    config = tiny_run("mec")
    with pytest.raises(UserError, match="--split is unknown: val.*train, test"):
        cluster_eval(config, load_target(config, "pixels"), "val")


def test_a_run_without_checkpoint_is_refused(tiny_run):
    config = tiny_run("twist")
    target = load_target(config, "random")
    target.kind = "trained"
    with pytest.raises(UserError, match="checkpoint is missing: .*last.ckpt.*pretrain"):
        cluster_eval(config, target)
    # Clusters that are asked for need no head.
    assert cluster_eval(config, target, clusters=3)[0]["clusters"] == 3


def test_data_without_labels_is_refused(tiny_run, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16)).save(tmp_path / split / f"{number}.png")
    config = tiny_run("mec", "data.dataset=custom", f"data.root={tmp_path}", "data.train_images=4")
    with pytest.raises(UserError, match="data set has no labels"):
        cluster_eval(config, load_target(config, "pixels"), "train")
