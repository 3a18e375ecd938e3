"""Kept features: whatever they depend on makes another file; damaged ones are not used."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from solo_minent.data.images import ArrayImages, FileImages, ImageSet, MappedImages
from solo_minent.data.loaders import TransformedImages, labelled_images
from solo_minent.data.transforms import eval_transform
from solo_minent.evaluation import cache


class Loader:
    """What the key of a loader depends on."""

    def __init__(self, images, transform=None, skip=False):
        transform = transform or eval_transform("digits", 8, (0.5,) * 3, (0.5,) * 3)
        self.dataset = TransformedImages(images, transform, skip)


def arrays(seed=0, count=6):
    pixels = np.random.RandomState(seed).randint(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(count) % 2, ["a", "b"])


def key_of(loader=None, digest="d", split="train", precision="32", device="cpu", blocks=0):
    loader = loader or Loader(arrays())
    return cache.features_key(loader, digest, split, precision, device, blocks)


def test_each_part_makes_another_file(tmp_path, monkeypatch):
    base = key_of()
    assert base == key_of() and cache.features_file(tmp_path, base).parent.name == "features"
    relabelled, transform = arrays(), eval_transform("digits", 8, (0.5,) * 3, (0.4, 0.5, 0.5))
    relabelled.targets = relabelled.targets[::-1]
    changes = [
        key_of(Loader(arrays(1))),
        key_of(Loader(arrays(count=5))),
        key_of(Loader(arrays().select(np.array([1, 0, 2, 3, 4, 5])))),
        key_of(Loader(relabelled)),
        key_of(Loader(arrays(), transform)),
        key_of(Loader(arrays(), eval_transform("digits", 16, (0.5,) * 3, (0.5,) * 3))),
        key_of(Loader(arrays(), eval_transform("cifar10", 8, (0.5,) * 3, (0.5,) * 3))),
        key_of(Loader(arrays(), skip=True)),
        key_of(digest="e"),
        key_of(split="test"),
        key_of(precision="bf16-mixed"),
        key_of(device="cuda"),
        key_of(blocks=2),
    ]
    monkeypatch.setattr(cache, "version", lambda package: "0")
    changes.append(key_of())
    files = {cache.features_file(tmp_path, key) for key in [base, *changes]}
    assert len(files) == len(changes) + 1


def test_files_are_known_by_path_size_and_time(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (4, 4), "red").save(path)

    def digest():
        return cache.images_digest(FileImages([str(path)], [0], ["a"]))

    first = digest()
    assert digest() == first
    os.utime(path, ns=(0, 0))
    later = digest()
    assert later != first
    Image.new("RGB", (9, 9), "red").save(path)
    os.utime(path, ns=(0, 0))
    assert digest() != later
    path.unlink()
    assert digest() not in (first, later)


def test_other_kinds_of_sets(tmp_path):
    raw = tmp_path / "x.bin"
    raw.write_bytes(bytes(range(3 * 4 * 5)) * 2)
    mapped = MappedImages([raw], (4, 5), [0, 1], ["a", "b"], "x")
    assert cache.images_digest(mapped) != cache.images_digest(mapped.select(np.array([1, 0])))

    class Own(ImageSet):
        targets, classes = np.array([0]), ["a"]

    assert cache.images_digest(Own()) is None and key_of(Loader(Own())) is None
    assert key_of(Loader(arrays(), transform=lambda image: image)) is None


def test_h5_images(tmp_path):
    from solo_minent.data.h5 import H5Images, write_h5

    write_h5(arrays(), tmp_path / "train.h5", progress=False)
    images = H5Images(tmp_path / "train.h5")
    first = cache.images_digest(images)
    assert first == cache.images_digest(H5Images(tmp_path / "train.h5"))
    assert first != cache.images_digest(images.select(np.array([0, 1])))
    os.utime(tmp_path / "train.h5", ns=(0, 0))
    assert first != cache.images_digest(images)


def test_digest_of_weights():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    first = cache.state_digest(net, "a")
    assert first == cache.state_digest(net, "a") != cache.state_digest(net, "b")
    net[1].num_batches_tracked += 1
    second = cache.state_digest(net, "a")
    assert second != first
    assert cache.state_digest(net.to(torch.bfloat16), "a") not in (first, second)


@pytest.fixture
def kept(tmp_path):
    key = key_of()
    path, features, labels = cache.features_file(tmp_path, key), torch.rand(6, 3), torch.arange(6)
    cache.write_features(path, key, features, labels)
    return path, key, features, labels


def test_what_was_written_is_read(kept, capsys):
    path, key, features, labels = kept
    read = cache.read_features(path, key)
    assert torch.equal(read[0], features) and torch.equal(read[1], labels)
    assert cache.read_features(path.with_name("other"), key) is None
    assert [p.name for p in path.parent.iterdir()] == [path.name] and capsys.readouterr().err == ""


def test_damaged_and_foreign_files_are_not_used(kept, capsys):
    path, key, features, labels = kept
    data = path.read_bytes()

    def unused(reason):
        assert cache.read_features(path, key) is None
        error = capsys.readouterr().err
        assert error.startswith(f"kept features are not used: {path} (") and reason in error
        assert error.count("\n") == 1

    for content in (b"", data[:-1], data[:20], b"\x00" * 100):
        path.write_bytes(content)
        unused("")
    path.write_bytes(data)
    assert cache.read_features(path, {**key, "blocks": 4}) is None  # another one under this name
    assert "something else" in capsys.readouterr().err
    for feats, labs in (
        (features[:5], labels[:5]),
        (features, labels[:5]),
        (features.double(), labels),
    ):
        cache.write_features(path, key, feats, labs)
        unused("its tensors are not those of the images")
    cache.write_features(path, key, features, labels)
    assert cache.read_features(path, key) is not None


def test_fewer_rows_only_where_corrupt_images_are_left_out(tmp_path):
    key = key_of(Loader(arrays(), skip=True))
    path = cache.features_file(tmp_path, key)
    cache.write_features(path, key, torch.rand(6, 3)[:5], torch.arange(6)[:5])
    assert len(cache.read_features(path, key)[0]) == 5


def test_a_disk_that_refuses_costs_a_note(tmp_path, capsys):
    (tmp_path / "features").write_text("a file in the way")
    key = key_of()
    cache.write_features(cache.features_file(tmp_path, key), key, torch.rand(6, 3), torch.arange(6))
    assert capsys.readouterr().err.startswith("features are not kept: ")


def test_only_labelled_images_are_in_the_key(tiny_run):
    config = tiny_run("mec")
    assert key_of(Loader(labelled_images(config, "train")))["count"] == 160
