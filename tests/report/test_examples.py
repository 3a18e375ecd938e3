"""Neighbours, predictions and confusions are those of the features."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from solo_minent.data.loaders import labelled_images
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import features_of, load_target
from solo_minent.report import examples as module
from solo_minent.report.examples import examples_of


def test_examples_are_what_the_features_say(make_run):
    config = make_run("twist")
    found = examples_of(config, progress=False)
    features = features_of(load_target(config), config, progress=False)

    distance = torch.cdist(features.test.double(), features.train.double())
    nearest = distance.argsort(dim=1, stable=True)
    votes = torch.nn.functional.one_hot(features.train_labels[nearest[:, :5]], 10).sum(1)
    hits = (votes.argmax(1) == features.test_labels).double().mean().item()
    assert found.accuracy == pytest.approx(100 * hits)
    assert found.counts.sum() == found.test == found.all_test == 80
    assert (found.train, found.all_train, found.k) == (160, 160, 5)
    np.testing.assert_array_equal(found.counts.sum(1), features.test_labels.bincount(minlength=10))

    train, test = (labelled_images(config, split) for split in ("train", "test"))
    assert [row[0].label for row in found.queries] == [str(digit) for digit in range(10)]
    for digit, (query, *shown) in enumerate(found.queries):
        index = int(np.flatnonzero(test.targets == digit)[0])
        assert query.same is None and query.image.tobytes() == test[index][0].tobytes()
        assert len(shown) == module.NEIGHBOURS
        for each, neighbour in zip(shown, nearest[index].tolist(), strict=False):
            image, label = train[neighbour]
            assert each.image.tobytes() == image.tobytes()
            assert (each.label, each.same) == (str(label), label == digit)

    assert found.projection == "pca" and found.points.shape == (80, 2)
    np.testing.assert_array_equal(found.point_labels, features.test_labels)
    wrong = int(found.counts.sum() - np.trace(found.counts))
    shown = found.confused
    assert shown == sorted(shown, key=lambda pair: -pair[2])
    assert 0 < sum(pair[2] for pair in shown) <= wrong
    assert all(a != b and 0 < n <= of for a, b, n, of in shown)


def test_of_a_large_set_a_part_is_looked_at_and_counted(make_run, monkeypatch):
    config = make_run("twist")
    monkeypatch.setattr(module, "MOST_TRAIN", 60)
    monkeypatch.setattr(module, "MOST_TEST", 40)
    monkeypatch.setattr(module, "LIMIT", 25)
    found, again = (examples_of(config, progress=False) for _ in range(2))
    assert (found.train, found.all_train, found.test, found.all_test) == (60, 160, 40, 80)
    assert len(found.points) == len(found.point_labels) == 25
    np.testing.assert_array_equal(found.points, again.points)
    assert found.counts.sum() == 40


def test_rows_that_are_no_images_any_more_show_no_neighbours(make_run, monkeypatch):
    original = module.features_of

    def without_one(*arguments, **options):
        features = original(*arguments, **options)
        return features._replace(test=features.test[1:], test_labels=features.test_labels[1:])

    monkeypatch.setattr(module, "features_of", without_one)
    found = examples_of(make_run("twist"), progress=False)
    assert found.queries == [] and "corrupt images" in found.no_queries
    assert found.counts.sum() == 79


def test_missing_data_and_unfinished_runs_are_errors(make_run, tmp_path):
    config = make_run("twist")
    away = replace(config, data=replace(config.data, dataset="cifar10", root=str(tmp_path / "no")))
    with pytest.raises(UserError, match=str(tmp_path / "no")):
        examples_of(away, progress=False)
    (config.run_dir / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="backbone weights are missing"):
        examples_of(config, progress=False)
