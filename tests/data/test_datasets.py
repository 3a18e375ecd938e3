"""Data sets: what is in them, how they are split, what is said when they are not there."""

from __future__ import annotations

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from solo_minent.data.datasets import load_split, num_classes, stratified_indices
from solo_minent.errors import UserError


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """CIFAR-10 in miniature: real layout and pickles, MD5 sums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(name):
        pixels = rng.randint(0, 256, (20, 3072)).astype(np.uint8)
        return write(name, {"data": pixels, "labels": list(range(10)) * 2})

    monkeypatch.setattr(tv.CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [batch("test_batch")])
    name, md5 = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    return tmp_path


def test_digits_are_scikit_learns_split_once_by_class():
    train, test = (load_split("digits", None, s) for s in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    assert np.bincount(test.targets).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    image, label = train[0]
    assert (image.mode, image.size, label) == ("RGB", (8, 8), int(train.targets[0]))
    pixels = np.concatenate([train.images, test.images])
    assert pixels.max() == 255
    bunch = load_digits()
    both = {im[..., 0].tobytes() for im in pixels}
    assert both == {np.round(im * 255 / 16).astype(np.uint8).tobytes() for im in bunch.images}
    # The split never moves: the run seed plays no part and NumPy's legacy stream is frozen.
    digest = hashlib.sha256(test.images.tobytes()).hexdigest()
    assert digest == "6349bd62e363bdffa6c5e26b27e581fb5473cb48e183f6cd6b218c6d145f0435"


def test_subset_is_stratified_seeded_and_exact():
    train = load_split("digits", None, "train")
    subset = load_split("digits", None, "train", subset=200, seed=1)
    assert len(subset) == 200
    shares = np.bincount(subset.targets) / 200
    assert np.abs(shares - np.bincount(train.targets) / len(train)).max() <= 1 / 200
    again = load_split("digits", None, "train", subset=200, seed=1)
    other = load_split("digits", None, "train", subset=200, seed=2)
    assert np.array_equal(subset.images, again.images)
    assert not np.array_equal(subset.images, other.images)
    assert len(load_split("digits", None, "train", subset=1438)) == 1438


def test_stratified_indices_of_uneven_classes():
    targets = np.array([0] * 70 + [1] * 20 + [2] * 10)
    chosen = stratified_indices(targets, 13, seed=0)
    assert len(set(chosen.tolist())) == 13
    assert np.bincount(targets[chosen]).tolist() == [9, 3, 1]
    assert len(stratified_indices(targets, 2, seed=0)) == 2


@pytest.mark.parametrize("subset", [0, -1, 1439, 2.5, True])
def test_bad_subset(subset):
    with pytest.raises(UserError, match="subset"):
        load_split("digits", None, "train", subset=subset)


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean cifar10"):
        load_split("cifar_10", None, "train")
    with pytest.raises(UserError, match="unknown split: val"):
        load_split("digits", None, "val")
    with pytest.raises(UserError, match="unknown data set: mnist"):
        num_classes("mnist")


def test_num_classes(image_folder):
    assert [num_classes(name) for name in ("digits", "cifar10", "cifar100")] == [10, 10, 100]
    assert num_classes("custom", image_folder(train__cat=1, train__dog=1)) == 2


def test_cifar_extracted(fake_cifar):
    for root in (fake_cifar, fake_cifar / "cifar-10-batches-py"):
        train, test = (load_split("cifar10", root, s) for s in ("train", "test"))
        assert (len(train), len(test), train.classes[3]) == (40, 20, "class3")
        assert train.images.shape == (40, 32, 32, 3)
        image, label = train[7]
        assert (image.size, image.mode, label) == ((32, 32), "RGB", 7)


def test_cifar_archive_is_unpacked_once_and_whole(fake_cifar, monkeypatch):
    folder, archive = fake_cifar / "cifar-10-batches-py", fake_cifar / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="archive is damaged"):
        load_split("cifar10", fake_cifar, "train")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5)
    assert len(load_split("cifar10", fake_cifar, "test")) == 20
    assert sorted(p.name for p in fake_cifar.iterdir()) == [folder.name, archive.name]


def test_cifar_missing_or_damaged_says_where_and_how(fake_cifar, tmp_path):
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    with pytest.raises(UserError, match="data.root") as caught:
        load_split("cifar10", empty, "train")
    assert str(empty / "cifar-10-batches-py") in str(caught.value)
    assert "torchvision.datasets.CIFAR10" in str(caught.value)
    assert not list(empty.iterdir())
    with pytest.raises(UserError, match="data.root is not set"):
        load_split("cifar100", None, "train")
    (fake_cifar / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut short")
    with pytest.raises(UserError, match="damaged"):
        load_split("cifar10", fake_cifar, "train")


def test_folder_with_val_and_classes_of_train(image_folder):
    root = image_folder(train__ant=2, train__bee=3, train__cat=1, val__bee=2, val__cat=1)
    train, test = (load_split("custom", root, s) for s in ("train", "test"))
    assert train.classes == test.classes == ["ant", "bee", "cat"]
    assert train.targets.tolist() == [0, 0, 1, 1, 1, 2]
    assert test.targets.tolist() == [1, 1, 2]
    image, label = train[4]
    assert (image.mode, image.size, label) == ("RGB", (30, 24), 1)
    assert len(load_split("custom", root, "train", subset=3)) == 3


def test_folder_test_is_read_where_there_is_no_val(image_folder):
    root = image_folder(train__a=1, train__b=1, test__a=4, test__b=1)
    assert len(load_split("custom", root, "test")) == 5


def test_unlabelled_folder(image_folder):
    root = image_folder(train=4)
    images = load_split("custom", root, "train")
    assert (len(images), images.classes, set(images.targets)) == (4, [], {-1})
    assert num_classes("custom", root) == 0
    assert images[2][1] == -1


@pytest.mark.parametrize(
    ("counts", "split", "words"),
    [
        ({"cat": 2}, "train", "no train folder in .*: it holds cat"),
        ({"train__a": 1}, "test", "no val or test folder"),
        ({"train__a": 1, "train__b": 0}, "train", "class folder has no images: .*b"),
        ({"train__a": 1, "train": 2}, "train", "images beside class folders"),
        ({"train": 0}, "train", "no images"),
        ({"train__a": 1, "val__a": 1, "val__z": 1}, "test", "without training images: z"),
        ({"train__a": 1, "val": 2}, "test", "no class folders"),
    ],
)
def test_wrong_layout_is_named(image_folder, counts, split, words):
    root = image_folder(**counts)
    with pytest.raises(UserError, match=words):
        load_split("custom", root, split)


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_split("custom", tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="data.root is not set"):
        load_split("imagenet100", None, "train")


def test_an_image_cut_short_is_named(image_folder):
    root = image_folder(train__a=2)
    path = root / "train" / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    images = load_split("custom", root, "train")
    assert isinstance(images[0][0], Image.Image)
    with pytest.raises(UserError, match=r"cannot read an image: .*1\.png"):
        images[1]
