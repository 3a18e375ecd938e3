"""Transfer sets whose splits are drawn here: how many of each class, and always the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from solo_minent.data import transfer_sets
from solo_minent.data.transfer_sets import draw_each, transfer_set
from solo_minent.errors import UserError


def put(folder: Path, names: list[str]) -> None:
    """Files that are there; nobody opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def published(monkeypatch):
    """Makes a tiny number the published one of a set."""

    def set_sizes(dataset, **sizes):
        known = transfer_sets.KNOWN[dataset]
        monkeypatch.setitem(transfer_sets.KNOWN, dataset, known._replace(sizes=sizes))

    return set_sizes


def build_caltech101(
    root: Path, counts=(("BACKGROUND_Google", 35), ("ant", 31), ("sea_horse", 40))
):
    for name, count in counts:
        folder = root / "caltech101/101_ObjectCategories" / name
        put(folder, [f"image_{i:04d}.jpg" for i in range(1, count + 1)])
    (root / "caltech101/101_ObjectCategories/BACKGROUND_Google/tmp").touch()  # is in the archive


def test_caltech_gives_30_of_each_class_to_the_training(tmp_path, published):
    build_caltech101(tmp_path)
    published("caltech101", all=35 + 31 + 40)
    first, again = (transfer_set("caltech101", tmp_path) for _ in range(2))
    assert first.train.classes == ["BACKGROUND_Google", "ant", "sea_horse"]
    assert np.bincount(first.train.targets).tolist() == [30, 30, 30]
    assert np.bincount(first.test.targets).tolist() == [5, 1, 10]
    paths = [set(part.paths.tolist()) for part in (first.train, first.test)]
    assert not paths[0] & paths[1] and len(paths[0] | paths[1]) == 106
    assert first.train.paths.tolist() == again.train.paths.tolist()
    assert first.drawn and "seed 0" in first.split
    numbers = sorted(int(Path(n).stem[-4:]) for n in first.train.file_names())
    assert numbers != sorted(3 * list(range(1, 31))), "the first 30 are no draw"


def test_a_class_of_caltech_needs_a_test_image(tmp_path, published):
    build_caltech101(tmp_path, [("BACKGROUND_Google", 31), ("ant", 30)])
    published("caltech101", all=61)
    with pytest.raises(UserError, match="caltech101 is damaged: .*class ant has 30 images"):
        transfer_set("caltech101", tmp_path)


def test_caltech_without_its_background_is_not_the_fields(tmp_path):
    build_caltech101(tmp_path)
    shutil.rmtree(tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google")
    with pytest.raises(UserError, match="caltech101 not found: .*BACKGROUND_Google"):
        transfer_set("caltech101", tmp_path)


def test_eurosat_trains_on_four_fifths(tmp_path, published):
    for name, count in (("Forest", 10), ("River", 20)):
        put(tmp_path / "eurosat/2750" / name, [f"{name}_{i}.jpg" for i in range(count)])
    published("eurosat", all=30)
    found = transfer_set("eurosat", tmp_path)
    assert np.bincount(found.train.targets).tolist() == [8, 16]
    assert np.bincount(found.test.targets).tolist() == [2, 4]


def test_a_draw_is_of_each_class_and_seeded():
    targets = np.array([3, 1, 1, 3, 1, 1, 3, 3, 3, 3])
    mask = draw_each(targets, lambda size: size // 2, seed=4)
    assert mask.sum() == 5 and mask[targets == 3].sum() == 3
    assert np.array_equal(mask, draw_each(targets, lambda size: size // 2, seed=4))
    others = [draw_each(targets, lambda size: size // 2, seed=s) for s in range(5)]
    assert len({tuple(other) for other in others}) > 1
