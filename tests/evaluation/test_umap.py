"""Projections into the plane, and their pictures."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from solo_minent.errors import UserError
from solo_minent.evaluation import umap
from solo_minent.evaluation.targets import load_target
from solo_minent.evaluation.umap import COLORS, plot_projection, project


def blobs(count=150, classes=3, dim=10):
    centers = 15 * np.eye(classes, dim)
    features, labels = make_blobs(count, centers=centers, cluster_std=0.5, random_state=0)
    return torch.from_numpy(features).float(), labels


def test_umap_keeps_clusters_apart_and_follows_the_seed():
    features, labels = blobs()
    points = project(features, "umap", seed=1)
    assert points.shape == (150, 2) and points.dtype == np.float32
    assert silhouette_score(points, labels) > 0.7
    assert np.array_equal(points, project(features.numpy(), "umap", seed=1))
    assert not np.array_equal(points, project(features, "umap", seed=2))
    # Fewest images, fewer than neighbours, and images that are all the same.
    assert np.isfinite(project(features[:5], "umap")).all()
    assert np.isfinite(project(features[:14], "umap")).all()
    assert np.isfinite(project(torch.ones(40, 3), "umap")).all()


def test_pca_is_that_of_scikit_learn():
    features, _ = blobs()
    points = project(features, "pca")
    assert points.shape == (150, 2) and points.dtype == np.float32
    np.testing.assert_allclose(points, PCA(2).fit_transform(features.numpy()), atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 1), (2, 5), (2, 1)])
def test_pca_of_almost_nothing(shape):
    points = project(torch.arange(shape[0] * shape[1]).reshape(shape).float(), "pca")
    assert points.shape == (shape[0], 2) and np.isfinite(points).all()
    assert np.ptp(points[:, 0]) > 0


@pytest.mark.parametrize(
    ("features", "method", "words"),
    [
        (torch.ones(4), "pca", r"cannot be projected by pca: shape \(4,\)"),
        (torch.ones(4, 0), "pca", "cannot be projected"),
        (torch.ones(1, 3), "pca", "at least 2 images"),
        (torch.ones(4, 3), "umap", "at least 5 images"),
        (torch.tensor([[1.0], [torch.nan]]), "pca", "not finite"),
        (torch.ones(9, 3), "tsne", "--method is unknown: tsne.*umap, pca"),
    ],
)
def test_what_cannot_be_projected_is_refused(features, method, words):
    with pytest.raises(UserError, match=words):
        project(features, method)


def test_without_umap_learn_the_message_says_what_to_install(tiny_run, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "umap":
            raise ImportError("no umap")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    words = r"pip install 'solo-minent\[umap\]'.*pca"
    with pytest.raises(UserError, match=words):
        project(torch.randn(20, 3), "umap")
    config = tiny_run("mec")
    with pytest.raises(UserError, match=words):
        plot_projection(config, load_target(config, "pixels"))
    assert project(torch.randn(20, 3), "pca").shape == (20, 2)


def test_pictures_of_targets_lie_side_by_side(tiny_run):
    config = tiny_run("mec")
    pixels, trained = load_target(config, "pixels"), load_target(config, "random")
    trained.kind = "trained"
    names = [
        plot_projection(config, pixels, "pca").name,
        plot_projection(config, trained, "pca").name,
        plot_projection(config, trained, "pca", "train").name,
    ]
    assert names == ["pca-pixels.png", "pca.png", "pca-train.png"]
    assert sorted(names) == sorted(path.name for path in config.run_dir.iterdir())
    picture = np.asarray(Image.open(config.run_dir / "pca.png").convert("RGB"))
    assert picture.shape == (1050, 1200, 3)
    seen = picture.astype(int) @ [1 << 16, 1 << 8, 1]
    for color in COLORS:  # ten digits: points and legend
        assert int(color[1:], 16) in seen


def test_a_large_split_is_shown_in_part(tiny_run, monkeypatch):
    config = tiny_run("mec")
    drawn = []
    monkeypatch.setattr(umap, "LIMIT", 30)
    monkeypatch.setattr(umap, "_draw", lambda *args: drawn.append(args))
    for _ in range(2):
        plot_projection(config, load_target(config, "pixels"), "pca")
    (_, points, labels, classes, titles, _), (_, again, *_) = drawn
    assert points.shape == (30, 2) and labels.shape == (30,) and len(classes) == 10
    assert "30 of 80 test images" in titles[1]
    assert np.array_equal(points, again)


@pytest.mark.parametrize("classes", [1, 10, 20, 21, 1000])
def test_any_number_of_classes(tmp_path, classes):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(60, 2)).astype(np.float32), rng.integers(0, classes, 60)
    path = tmp_path / "picture.png"
    names = [f"class {number}" for number in range(classes)]
    umap._draw(path, points, labels, names, ("title", "about"), "pca")
    assert Image.open(path).size == (1200, 1050)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_any_name_of_a_class(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), save(self, *args, **kw))
    )
    names = ["_hidden", "$x^$", "caf\udce9", "n" * 300, ""]
    points = np.random.default_rng(0).normal(size=(20, 2))
    umap._draw(tmp_path / "a.png", points, np.arange(20) % 5, names, ("title", "about"), "pca")
    (axes,) = drawn[0].axes
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["_hidden", "$x^$", "caf?", "n" * 27 + "…", ""]
    assert "n" * 13 + "…" in [text.get_text() for text in axes.texts]


def test_no_two_classes_of_a_legend_look_alike():
    looks = [umap._look(label) for label in range(umap.NAMED)]
    assert len(set(looks)) == umap.NAMED == 20
    # Nor do two of the colours that are nearest to each other share a mark.
    for one, other in ((1, 6), (3, 8), (5, 7), (0, 9)):
        assert looks[one][1] != looks[other][1]


def test_unknown_split_and_method_are_refused(tiny_run):
    config = tiny_run("mec")
    target = load_target(config, "pixels")
    with pytest.raises(UserError, match="--split is unknown: val"):
        plot_projection(config, target, "pca", "val")
    with pytest.raises(UserError, match="--method is unknown: tsne"):
        plot_projection(config, target, "tsne")
