"""h5 files: written from any set, read back image by image, by workers too."""

from __future__ import annotations

import io
import pickle
import sys

import h5py
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from solo_minent.data.datasets import load_split, num_classes
from solo_minent.data.h5 import H5Images, write_h5
from solo_minent.data.images import ArrayImages, CorruptImageError
from solo_minent.errors import UserError


class Pixels(Dataset):
    """(pixels, label) of each image."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return np.asarray(image), label


@pytest.fixture
def noise():
    """24 images of 3 classes in no order, two of them unlabelled."""
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (24, 6, 5, 3)).astype(np.uint8)
    targets = rng.permutation([0, 1, 2, -1] * 6)
    return ArrayImages(pixels, targets, ["zebra", "ant", "bee"], "noise train")


@pytest.fixture
def packed(image_folder):
    """A folder set and the h5 files made of it, in the same place."""
    root = image_folder(train__ant=3, train__bee=12, train__cat=2, val__bee=2, val__cat=1)
    for split, name in (("train", "train"), ("test", "val")):
        write_h5(load_split("custom", root, split), root / f"{name}.h5")
    return root


def test_a_folder_comes_back_byte_for_byte_in_its_order(packed):
    for split in ("pretrain", "train", "test"):
        files = load_split("custom", packed, split)
        images = load_split("custom", packed, split, format="h5")
        assert images.classes == files.classes == ["ant", "bee", "cat"]
        assert images.targets.tolist() == files.targets.tolist()
        assert images.targets.dtype == np.int64
        assert images.file_names() == files.file_names()
        for index in range(len(files)):
            assert images.encoded(index) == files.encoded(index)
            assert np.array_equal(np.asarray(images[index][0]), np.asarray(files[index][0]))
    assert images.has_files
    assert images.name_of(2) == f"{packed / 'val.h5'}:cat/0.png"
    assert num_classes("custom", packed, format="h5") == 3


def test_the_layout_is_one_group_a_class_one_array_of_bytes_an_image(packed):
    with h5py.File(packed / "train.h5") as file:
        assert sorted(file) == ["ant", "bee", "cat"]
        assert sorted(file["ant"]) == ["0.png", "1.png", "2.png"]
        item = file["bee"]["11.png"]
        assert item.dtype == np.uint8 and item.ndim == 1
        assert bytes(item[:]) == (packed / "train" / "bee" / "11.png").read_bytes()


def test_arrays_come_back_pixel_for_pixel_in_their_order(noise, tmp_path):
    write_h5(noise, tmp_path / "train.h5", progress=False)
    images = H5Images(tmp_path / "train.h5")
    assert images.classes == noise.classes
    assert images.targets.tolist() == noise.targets.tolist()
    for index in range(len(noise)):
        assert np.array_equal(np.asarray(images[index][0]), noise.images[index])
        assert images[index][1] == noise.targets[index]
    assert Image.open(io.BytesIO(images.encoded(0))).format == "PNG"


def test_files_of_equal_names_in_nested_folders_keep_their_order(image_folder):
    root = image_folder(train__a__x=2, train__a__y=2, train__b=2)
    files = load_split("custom", root, "train")
    write_h5(files, root / "train.h5")
    images = load_split("custom", root, "train", format="h5")
    assert images.file_names() == ["0.png", "1.png"] * 3
    assert [images.encoded(i) for i in range(6)] == [files.encoded(i) for i in range(6)]


def test_a_set_without_labels(image_folder):
    root = image_folder(train=4)
    files = load_split("custom", root, "train")
    write_h5(files, root / "train.h5")
    images = load_split("custom", root, "train", format="h5")
    assert (images.classes, images.targets.tolist()) == ([], [-1] * 4)
    assert images.encoded(3) == files.encoded(3)
    assert num_classes("custom", root, format="h5") == 0


def test_a_foreign_file_has_labels_by_group_name(tmp_path, packed):
    png = (packed / "train" / "ant" / "0.png").read_bytes()
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for group in ("n2", "n1"):
            file.create_group(group).create_dataset("x.png", data=np.frombuffer(png, np.uint8))
    images = H5Images(tmp_path / "train.h5")
    assert (images.classes, images.targets.tolist()) == (["n1", "n2"], [0, 1])
    assert images[1][0].size == (30, 24)


def test_val_has_the_labels_of_train(packed, tmp_path):
    write_h5(load_split("custom", packed, "train"), tmp_path / "val.h5")
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for group in ("aardvark", "ant", "bee", "cat"):
            file.create_group(group)["x"] = np.zeros(1, np.uint8)
    images = load_split("custom", tmp_path, "test", format="h5")
    assert images.targets.tolist() == [1] * 3 + [2] * 12 + [3] * 2
    with h5py.File(tmp_path / "train.h5", "a") as file:
        del file["bee"]
    with pytest.raises(UserError, match="without training images: bee"):
        load_split("custom", tmp_path, "test", format="h5")


def test_subset_list_and_selection(packed, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("cat/1.png\nbee/10.png\nant/0.png\n")
    images = load_split("custom", packed, "train", file_list=path, format="h5")
    assert images.file_names() == ["0.png", "10.png", "1.png"]
    assert images[1][1] == 1
    assert images.encoded(1) == (packed / "train" / "bee" / "10.png").read_bytes()
    two = load_split("custom", packed, "train", subset=2, file_list=path, format="h5")
    assert len(two) == 2
    path.write_text("cat/7.png\n")
    with pytest.raises(UserError, match=r"1 missing images of 1: .*train\.h5 as"):
        load_split("custom", packed, "train", file_list=path, format="h5")


def test_workers_read_what_the_main_process_reads(noise, tmp_path):
    write_h5(noise, tmp_path / "train.h5")
    images = H5Images(tmp_path / "train.h5").select(np.arange(23, 3, -1))
    images[0]  # the handle is open when the workers are forked
    loader = DataLoader(Pixels(images), batch_size=4, num_workers=2)
    pixels = np.concatenate([batch.numpy() for batch, _ in loader])
    assert np.array_equal(pixels, noise.images[23:3:-1])
    assert np.array_equal(np.asarray(images[1][0]), noise.images[22])


def test_pickled_while_it_is_open(noise, tmp_path):
    write_h5(noise, tmp_path / "train.h5")
    images = H5Images(tmp_path / "train.h5")
    images[0]
    again = pickle.loads(pickle.dumps(images))
    assert again.encoded(7) == images.encoded(7)


def test_a_corrupt_image_in_a_file_is_named(packed):
    (packed / "train" / "bee" / "4.png").write_bytes(b"not found")
    write_h5(load_split("custom", packed, "train"), packed / "train.h5")
    images = load_split("custom", packed, "train", format="h5")
    index = images.file_names().index("4.png")
    with pytest.raises(CorruptImageError, match=r"train\.h5:bee/4\.png \(not an image\)") as caught:
        images[index]
    assert caught.value.index == index


def test_a_file_is_written_whole_or_not_at_all(packed):
    before = (packed / "train.h5").read_bytes()
    files = load_split("custom", packed, "train")
    (packed / "train" / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cannot read a file: .*cat/1\.png"):
        write_h5(files, packed / "train.h5")
    assert (packed / "train.h5").read_bytes() == before
    assert sorted(path.name for path in packed.iterdir()) == ["train", "train.h5", "val", "val.h5"]


def test_a_place_that_cannot_be_written(packed):
    with pytest.raises(UserError, match="cannot write"):
        write_h5(load_split("custom", packed, "train"), packed / "train.h5" / "deeper.h5")


@pytest.mark.parametrize("keep", [0, 7, 700, -40])
def test_a_damaged_file_is_named(packed, keep):
    path = packed / "train.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"h5 file is damaged: .*train\.h5") as caught:
        load_split("custom", packed, "train", format="h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": np.zeros(4, np.uint8)}, "holds images. Expected an HDF5 file with one group"),
        ({"a/x": np.zeros((2, 2), np.float32)}, "not an image file's bytes: .*a/x"),
        ({"a/b/x": np.zeros(4, np.uint8)}, "not an image file's bytes: .*a/b"),
        ({}, "no images"),
    ],
)
def test_a_file_of_another_layout(tmp_path, content, words):
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for name, value in content.items():
            file[name] = value
    with pytest.raises(UserError, match=words):
        H5Images(tmp_path / "train.h5")[0]


def test_files_that_are_not_there(packed, tmp_path):
    with pytest.raises(UserError, match="data.root is not set"):
        load_split("cifar10", None, "train", format="h5")
    (packed / "val.h5").unlink()
    with pytest.raises(
        UserError, match=r"no val\.h5 or test\.h5 in .*prepare custom --root .*--h5"
    ):
        load_split("custom", packed, "test", format="h5")
    with pytest.raises(UserError, match=r"no pretrain\.h5 in"):
        load_split("stl10", packed, "pretrain", format="h5")
    with pytest.raises(UserError, match="imagenet100 has 100 classes.*train.h5 has 3"):
        load_split("imagenet100", packed, "train", format="h5")


def test_h5py_missing(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        load_split("custom", packed, "train", format="h5")
    with pytest.raises(UserError, match="pip install h5py"):
        write_h5(load_split("custom", packed, "train"), packed / "new.h5")
