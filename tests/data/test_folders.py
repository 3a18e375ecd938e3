"""Folders of images: what is read, and which layouts are refused with what words."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from solo_minent.data import folders
from solo_minent.data.datasets import load_split, num_classes
from solo_minent.data.folders import folder_split, select_listed
from solo_minent.data.images import ArrayImages
from solo_minent.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """`tree(200, images=2, val=200, inner="images")`: empty files in folders c000, c001, …"""

    def build(classes, images=1, val=None, inner="", name="set"):
        base = tmp_path / name
        for split, count in (("train", classes), ("val", classes if val is None else val)):
            (base / split).mkdir(parents=True)
            for label in range(count):
                folder = base / split / f"c{label:03d}" / (inner if split == "train" else "")
                folder.mkdir(parents=True)
                for index in range(images):
                    (folder / f"c{label:03d}_{index}.JPEG").touch()
        return base

    return build


@pytest.fixture
def raw_tiny(tree):
    """Tiny-ImageNet as it comes out of its archive."""
    base = tree(200, val=0, inner="images")
    for label in range(200):
        (base / "train" / f"c{label:03d}" / f"c{label:03d}_boxes.txt").touch()
    (base / "val" / "images").mkdir()
    for index in range(5):
        (base / "val" / "images" / f"val_{index}.JPEG").touch()
    (base / "val" / "val_annotations.txt").write_text("val_0.JPEG\tc000\t0\t0\t62\t62\n")
    return base


def test_the_order_is_torchvisions(tree):
    base = tree(3, images=12)
    (base / "train" / "c001" / "nested").mkdir()
    (base / "train" / "c001" / "nested" / "x.png").touch()
    (base / "train" / "c002" / "notes.txt").touch()
    (base / "train" / ".cache").mkdir()
    images = folder_split("custom", base, "train")
    (base / "train" / ".cache").rmdir()
    theirs = ImageFolder(base / "train")
    assert [os.fsdecode(path) for path in images.paths] == [path for path, _ in theirs.samples]
    assert images.targets.tolist() == theirs.targets
    assert images.classes == theirs.classes
    assert len(images) == 37
    assert folder_split("custom", base, "pretrain").targets.tolist() == theirs.targets


def test_the_tree_is_walked_once(tree, monkeypatch):
    base, calls = tree(20, images=2), []
    scan = os.scandir
    monkeypatch.setattr(folders.os, "scandir", lambda place: calls.append(place) or scan(place))
    assert len(load_split("custom", base, "train")) == 40
    walked = [place for place in map(str, calls) if os.path.basename(place).startswith("c0")]
    assert len(walked) == len(set(walked)) == 20
    calls.clear()
    assert num_classes("custom", base) == 20  # opens no class
    assert set(map(str, calls)) == {str(base / "train")}


@pytest.mark.parametrize(
    ("dataset", "count", "inner"),
    [("tiny_imagenet", 200, "images"), ("imagenet100", 100, ""), ("imagenet", 1000, "")],
)
def test_sets_of_a_known_number_of_classes(tree, dataset, count, inner):
    base = tree(count, inner=inner)
    assert num_classes(dataset, base) == count
    for split in ("pretrain", "train", "test"):
        assert folder_split(dataset, base, split).targets.tolist() == list(range(count))
    shutil.rmtree(base / "train" / "c007")
    with pytest.raises(UserError, match=f"{dataset} has {count} classes.*/train has {count - 1}"):
        num_classes(dataset, base)


def test_the_set_may_lie_in_a_folder_of_its_name(tree, tmp_path):
    tree(200, name="tiny-imagenet-200")
    tree(100, name="imagenet100")
    assert len(folder_split("tiny_imagenet", tmp_path, "test")) == 200
    assert len(folder_split("imagenet100", tmp_path, "train")) == 100


def test_imagenet_is_not_imagenet100(tree):
    base = tree(1000)
    with pytest.raises(UserError) as caught:
        folder_split("imagenet100", base, "train")
    assert "imagenet100 has 100 classes" in str(caught.value)
    assert f"solo-minent prepare imagenet100 --from {base} --root" in str(caught.value)


@pytest.mark.parametrize("split", ["pretrain", "train", "test"])
def test_raw_tiny_imagenet_is_refused_before_training(raw_tiny, split):
    fix = f"solo-minent prepare tiny_imagenet --root {raw_tiny}"
    with pytest.raises(UserError, match="not sorted into classes") as caught:
        folder_split("tiny_imagenet", raw_tiny, split)
    assert str(raw_tiny / "val" / "images") in str(caught.value) and fix in str(caught.value)
    with pytest.raises(UserError, match="not sorted"):
        num_classes("tiny_imagenet", raw_tiny)


def test_half_sorted_tiny_imagenet_is_refused(raw_tiny):
    for label in range(150):
        (raw_tiny / "val" / f"c{label:03d}").mkdir()
    with pytest.raises(UserError, match="prepare tiny_imagenet"):
        folder_split("tiny_imagenet", raw_tiny, "train")


def test_unsorted_val_of_any_folder_set(raw_tiny):
    with pytest.raises(UserError, match="prepare tiny_imagenet"):
        folder_split("custom", raw_tiny, "test")
    (raw_tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match="is no class of train.*one folder a class"):
        folder_split("custom", raw_tiny, "test")
    assert len(folder_split("custom", raw_tiny, "train")) == 200


def test_a_class_may_be_called_images(image_folder):
    root = image_folder(train__images=2, train__sounds=1, val__images=1)
    assert folder_split("custom", root, "test").targets.tolist() == [0]


def test_flat_imagenet_val_is_named(tree):
    base = tree(1000, val=0)
    for index in range(1, 4):
        (base / "val" / f"ILSVRC2012_val_{index:08d}.JPEG").touch()
    words = r"3 validation images unsorted \(ILSVRC2012_val_\*\).*prepare imagenet --root"
    for split in ("train", "test"):
        with pytest.raises(UserError, match=words):
            folder_split("imagenet", base, split)


def test_archives_in_place_of_classes(tree):
    base = tree(0)
    for label in range(4):
        (base / "train" / f"n{label}.tar").touch()
    with pytest.raises(UserError, match=r"holds 4 \.tar archives"):
        folder_split("imagenet", base, "train")


def test_most_classes_of_val_missing(tree):
    with pytest.raises(UserError, match="val has 49 of 100"):
        folder_split("imagenet100", tree(100, val=49), "train")
    assert len(folder_split("imagenet100", tree(100, val=50, name="half"), "test")) == 50


def test_an_empty_class_is_named_and_counted(tree):
    base = tree(5, images=2)
    for label in (1, 3):
        for file in (base / "val" / f"c00{label}").iterdir():
            file.unlink()
    assert len(folder_split("custom", base, "train")) == 10
    with pytest.raises(UserError, match=r"no images: .*val/c001 \(2 of 5 are empty\)"):
        folder_split("custom", base, "test")


def test_links_are_followed_and_broken_ones_named(tree, tmp_path):
    source, base = tree(3, images=2), tmp_path / "links"
    (base / "train").mkdir(parents=True)
    for label in (0, 2):
        (base / "train" / f"c00{label}").symlink_to(source / "train" / f"c00{label}")
    assert folder_split("custom", base, "train").targets.tolist() == [0, 0, 1, 1]
    (base / "train" / "c009").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"broken link: .*c009 -> .*gone"):
        num_classes("custom", base)


def test_what_would_hang_or_be_missing_is_named(tree, tmp_path):
    base = tree(2, images=2)
    place = base / "train" / "c001"

    def refused(name, words, make):
        make(place / name)
        with pytest.raises(UserError, match=words):
            folder_split("custom", base, "train")
        (place / name).unlink()

    refused("pipe.jpg", r"no regular file: .*pipe\.jpg", os.mkfifo)
    refused("gone.jpg", r"broken link: .*gone\.jpg ->", lambda p: p.symlink_to(tmp_path / "no"))
    refused("self.jpg", r"broken link: .*self\.jpg ->", lambda p: p.symlink_to(p))
    refused("zero.jpg", r"no regular file: .*zero\.jpg", lambda p: p.symlink_to("/dev/zero"))
    refused("more", r"broken link: .*more ->", lambda p: p.symlink_to(tmp_path / "no"))
    refused("loop", r"a link leads to a folder above it: .*loop -> ", lambda p: p.symlink_to(place))
    (place / "x.jpg").mkdir()  # a folder like any other
    (place / ".lock").symlink_to(tmp_path / "no")
    assert len(folder_split("custom", base, "train")) == 4
    (base / "train" / "c009").symlink_to(base / "train" / "c009")
    with pytest.raises(UserError, match=r"broken link: .*c009"):
        num_classes("custom", base)


def test_a_nested_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    base, scan = tree(2, inner="images"), os.scandir

    def closed(place):
        if str(place).endswith("c001/images"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(folders.os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot list a folder: .*c001/images \(Permission den"):
        folder_split("custom", base, "train")


@pytest.fixture
def listed(tree, tmp_path):
    base, path = tree(3, images=4, inner="images"), tmp_path / "list.txt"

    def read(text, dataset="custom"):
        path.write_text(text)
        return load_split(dataset, base, "pretrain", file_list=path)

    return read


def test_file_list_of_any_spelling_in_the_order_of_the_tree(listed):
    images = listed("# mine\n\nc002/c002_3.JPEG\nc000_1.JPEG\nc002/images/c002_0.JPEG  \n")
    assert images.file_names() == ["c000_1.JPEG", "c002_0.JPEG", "c002_3.JPEG"]
    assert images.targets.tolist() == [0, 2, 2]
    assert images.classes == ["c000", "c001", "c002"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c000_1.JPEG\nc001_9.JPEG\n", r"1 missing images of 2: .*list\.txt, line 2: c001_9\.JPEG"),
        ("x/1.JPEG\n\nc000_9.JPEG\nc000_0.JPEG", r"2 missing images of 3: .*, line 1: x/1\.JPEG"),
        ("c000_1\n", "line 1: c000_1"),
        ("c000_1.JPEG\n#\nc000/c000_1.JPEG\n", "twice: .*lines 1 and 3"),
        ("# nothing\n\n", "the file list is empty"),
    ],
)
def test_bad_file_list(listed, text, words):
    with pytest.raises(UserError, match=words):
        listed(text)


def test_file_list_that_is_no_text_or_not_there(tree, tmp_path):
    base, path = tree(2), tmp_path / "list.txt.xz"
    with pytest.raises(UserError, match="No such file"):
        load_split("custom", base, "train", file_list=path)
    path.write_bytes(b"\xfd7zXZ\x00\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_split("custom", base, "train", file_list=path)


@pytest.mark.parametrize(("dataset", "split"), [("digits", "train"), ("custom", "test")])
def test_file_list_where_there_is_nothing_to_choose(tree, dataset, split):
    with pytest.raises(UserError, match=f"file list cannot choose images of {dataset} {split}"):
        load_split(dataset, tree(2), split, file_list="list.txt")


def test_file_list_then_subset(listed, tree, tmp_path):
    listed("".join(f"c{label:03d}_{index}.JPEG\n" for label in range(2) for index in range(4)))
    path = tmp_path / "list.txt"
    images = load_split("custom", tmp_path / "set", "train", subset=4, seed=1, file_list=path)
    assert images.targets.tolist() == [0, 0, 1, 1]


def test_file_list_of_unlabelled_images(image_folder, tmp_path):
    root, path = image_folder(train=4), tmp_path / "list.txt"
    path.write_text("2.png\n0.png\n")
    images = load_split("custom", root, "train", file_list=path)
    assert (images.file_names(), images.targets.tolist()) == (["0.png", "2.png"], [-1, -1])


def test_same_name_in_two_folders_of_a_class(tree, tmp_path):
    base, path = tree(2), tmp_path / "list.txt"
    (base / "train" / "c000" / "more").mkdir()
    (base / "train" / "c000" / "more" / "c000_0.JPEG").touch()
    path.write_text("c000_0.JPEG\n")
    with pytest.raises(UserError, match="name several images"):
        load_split("custom", base, "train", file_list=path)


def test_arrays_have_no_names_to_choose_from(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a/1.png\n")
    images = ArrayImages(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1), ["a"])
    with pytest.raises(UserError, match="has no file"):
        select_listed(images, path, "memory")


def test_every_promised_number_belongs_to_a_folder_set():
    assert set(folders.CLASS_COUNTS) < set(folders.FOLDER_SETS)
