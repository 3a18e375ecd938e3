"""Data sets: what is in them, how they are split, what is said when they are not there."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from solo_minent.data import datasets
from solo_minent.data.datasets import DATASETS, load_split, num_classes, stratified_indices
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


@pytest.fixture
def fake_stl10(tmp_path, monkeypatch):
    """STL-10 in miniature: 20 labelled, 30 unlabelled and 10 test images in the real layout."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.RandomState(0)
    pixels, sums = {}, {}
    for name, count in (("train", 20), ("unlabeled", 30), ("test", 10)):
        pixels[name] = rng.randint(0, 256, (count, 96, 96, 3)).astype(np.uint8)
        content = {f"{name}_X.bin": pixels[name].transpose(0, 3, 2, 1).tobytes()}
        if name != "unlabeled":
            content[f"{name}_y.bin"] = bytes(1 + index % 10 for index in range(count))
        for file, raw in content.items():
            (folder / file).write_bytes(raw)
            sums[file] = hashlib.md5(raw).hexdigest()
    for kind in ("train_list", "test_list"):
        real = getattr(tv.STL10, kind)
        monkeypatch.setattr(tv.STL10, kind, [[name, sums[name]] for name, _ in real])
    return tmp_path, pixels


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
    names = ("digits", "cifar10", "cifar100", "stl10")
    assert [num_classes(name) for name in names] == [10, 10, 100, 10]
    assert set(names) < set(DATASETS) and len(DATASETS) == 8
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
    assert "solo-minent prepare cifar10 --root" in str(caught.value)
    assert not list(empty.iterdir())
    with pytest.raises(UserError, match="data.root is not set"):
        load_split("cifar100", None, "train")
    (fake_cifar / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut short")
    with pytest.raises(UserError, match="damaged"):
        load_split("cifar10", fake_cifar, "train")


def test_stl10_adds_its_unlabelled_images_to_pretraining(fake_stl10):
    root, pixels = fake_stl10
    sets = {split: load_split("stl10", root, split) for split in ("pretrain", "train", "test")}
    assert {split: len(images) for split, images in sets.items()} == {
        "pretrain": 50,
        "train": 20,
        "test": 10,
    }
    labels = list(range(10))
    assert sets["train"].targets.tolist() == labels * 2
    assert sets["pretrain"].targets.tolist() == labels * 2 + [-1] * 30
    assert sets["test"].targets.tolist() == labels
    assert sets["test"].classes == sets["pretrain"].classes
    assert sets["test"].classes[0] == "airplane" and len(sets["test"].classes) == 10
    image, label = sets["pretrain"][27]
    assert (image.mode, image.size, label) == ("RGB", (96, 96), -1)
    assert np.array_equal(np.asarray(image), pixels["unlabeled"][7])
    assert np.array_equal(np.asarray(sets["test"][3][0]), pixels["test"][3])
    theirs = tv.STL10(str(root), split="train+unlabeled")
    for index in (0, 13, 49):
        ours, (image, label) = sets["pretrain"][index], theirs[index]
        assert np.array_equal(np.asarray(ours[0]), np.asarray(image)) and ours[1] == label
    assert sets["pretrain"].name_of(3) == "image 3 of stl10 pretrain"


def test_subset_of_a_partly_labelled_set_keeps_the_shares(fake_stl10):
    subset = load_split("stl10", fake_stl10[0], "pretrain", subset=25, seed=1)
    assert np.bincount(subset.targets + 1).tolist() == [15] + [1] * 10
    image, label = subset[24]
    assert label == -1 and any(
        np.array_equal(np.asarray(image), other) for other in fake_stl10[1]["unlabeled"]
    )


def test_stl10_damage_is_found_in_the_files_of_the_split(fake_stl10, monkeypatch):
    root, file = fake_stl10[0], fake_stl10[0] / "stl10_binary" / "unlabeled_X.bin"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(UserError, match=r"stl10 is damaged: .*unlabeled_X\.bin") as caught:
        load_split("stl10", root, "pretrain")
    assert "solo-minent prepare stl10" in str(caught.value)
    assert len(load_split("stl10", root, "train")) == 20
    file.write_bytes(raw)
    assert len(load_split("stl10", root, "pretrain")) == 50
    (root / "stl10_binary" / "test_y.bin").unlink()
    with pytest.raises(UserError, match=r"damaged: .*test_y\.bin"):
        load_split("stl10", root, "test")


def test_stl10_is_summed_up_once_in_a_process(fake_stl10, monkeypatch):
    from torchvision.datasets import utils

    calls, real = [], utils.calculate_md5
    monkeypatch.setattr(
        utils, "calculate_md5", lambda path, **kw: calls.append(path) or real(path, **kw)
    )
    datasets._md5.cache_clear()
    for split in ("pretrain", "train", "pretrain"):
        load_split("stl10", fake_stl10[0], split)
    assert len(calls) == len(set(calls)) == 3


def test_stl10_archive_is_unpacked(fake_stl10, monkeypatch):
    root = fake_stl10[0]
    folder, archive = root / "stl10_binary", root / "stl10_binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    shutil.rmtree(folder)
    monkeypatch.setattr(tv.STL10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_split("stl10", root, "pretrain")) == 50
    shutil.rmtree(folder)
    monkeypatch.setattr(tv.STL10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match="archive is damaged"):
        load_split("stl10", root, "train")


def test_pretrain_is_train_where_all_is_labelled(fake_cifar, image_folder):
    folder = image_folder(train__a=2, train__b=1)
    for dataset, root in (("digits", None), ("cifar10", fake_cifar), ("custom", folder)):
        pretrain, train = (load_split(dataset, root, split) for split in ("pretrain", "train"))
        assert pretrain.targets.tolist() == train.targets.tolist()
        assert np.array_equal(np.asarray(pretrain[1][0]), np.asarray(train[1][0]))


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
