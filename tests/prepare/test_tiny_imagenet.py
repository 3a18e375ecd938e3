"""Tiny-ImageNet's validation images get into class folders, and no image is ever lost."""

from __future__ import annotations

import os
import shutil

import pytest

from solo_minent.data.datasets import load_split
from solo_minent.errors import UserError
from solo_minent.prepare import prepare, tiny_imagenet

IDS = ["n01440764", "n01443537", "n01484850"]
WHERE = {f"val_{i}.JPEG": IDS[i % 3] for i in range(6)}


@pytest.fixture
def online(server, mini_tiny_zip, monkeypatch):
    """The zip on the local server."""
    shutil.copy(mini_tiny_zip, server.folder)
    archive = tiny_imagenet.ARCHIVE
    url = f"{server.url}/{mini_tiny_zip.name}"
    changed = archive.__class__(url, archive.filename, archive.md5, 1, 1)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", changed)
    return server


def images(folder):
    return sorted(p.read_bytes() for p in folder.rglob("*.JPEG"))


def check_arranged(root, original):
    """Every image of the original is there, and each validation image where its label says."""
    assert images(root) == images(original)
    val = root / "val"
    places = {p.name: p.parent.name for p in val.rglob("*.JPEG")}
    assert places == WHERE
    for name in WHERE:
        published = original / "val" / "images" / name
        assert (val / WHERE[name] / name).read_bytes() == published.read_bytes()
    assert not (val / "images").exists()
    assert not (root / ".prepare-tiny_imagenet").exists()


def test_download_and_again(online, mini_tiny, tmp_path, tree):
    root = tmp_path / "root"
    done = prepare("tiny_imagenet", root, verify=True)
    assert [tuple(row) for row in done.rows] == [("train", 6, 3, 2, 2), ("test", 6, 3, 2, 2)]
    check_arranged(root, mini_tiny)
    assert sorted(p.name for p in root.iterdir()) == ["train", "val", "wnids.txt"]
    test = load_split("tiny_imagenet", done.root, "test")
    assert test.classes == IDS and test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    before = tree(root)
    prepare("tiny_imagenet", root)
    assert tree(root) == before and len(online.asked) == 1


def test_no_network(mini_tiny, no_server, monkeypatch, tmp_path):
    archive = tiny_imagenet.ARCHIVE
    changed = archive.__class__(f"{no_server}/x.zip", archive.filename, archive.md5, 1, 1)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", changed)
    root = tmp_path / "root"
    with pytest.raises(UserError, match=f"cannot download {no_server}.*put it at {root}/tiny-im"):
        prepare("tiny_imagenet", root)
    assert not list(root.iterdir())


def test_damaged_download(online, mini_tiny_zip, tmp_path):
    served = online.folder / mini_tiny_zip.name
    served.write_bytes(served.read_bytes()[:-30])
    with pytest.raises(UserError, match="download is damaged"):
        prepare("tiny_imagenet", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("form", ["zip", "folder of the zip", "tree", "folder of the tree"])
def test_from(mini_tiny, mini_tiny_zip, tmp_path, tree, form):
    source = {"zip": mini_tiny_zip, "tree": mini_tiny}.get(form, mini_tiny.parent)
    if form == "folder of the zip":
        source = tmp_path / "download"
        source.mkdir()
        shutil.copy(mini_tiny_zip, source)
    before = tree(mini_tiny.parent)
    done = prepare("tiny_imagenet", tmp_path / "root", source=source)
    check_arranged(done.root, mini_tiny)
    assert tree(mini_tiny.parent) == before


def test_unpacked_in_the_root_or_below_it(mini_tiny, tmp_path):
    for place in ("tiny-imagenet-200", "."):
        root = tmp_path / f"root{len(place)}"
        shutil.copytree(mini_tiny, root / place, dirs_exist_ok=True)
        done = prepare("tiny_imagenet", root)
        assert done.root == (root / place)
        check_arranged(done.root, mini_tiny)


@pytest.mark.parametrize("after", range(0, 6))
def test_killed_while_rearranging(mini_tiny, monkeypatch, tmp_path, after):
    root = tmp_path / "root"
    shutil.copytree(mini_tiny, root)
    done = []

    def rename(source, target):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(target)
        os.replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiny_imagenet.os, "rename", rename)
        prepare("tiny_imagenet", root)
    assert images(root) == images(mini_tiny)
    prepare("tiny_imagenet", root)
    check_arranged(root, mini_tiny)


@pytest.mark.parametrize("after", range(0, 5))
def test_killed_while_moving_into_the_root(online, mini_tiny, monkeypatch, tmp_path, after):
    root = tmp_path / "root"
    left = [after]
    real = {"rename": os.rename, "replace": os.replace}

    def stopping(name):
        def move(source, target):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real[name](source, target)

        return move

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in real:
            patch.setattr(tiny_imagenet.os, name, stopping(name))
        prepare("tiny_imagenet", root)
    prepare("tiny_imagenet", root)
    check_arranged(root, mini_tiny)
    assert len(online.asked) == 1


def test_killed_while_copying(mini_tiny, monkeypatch, tmp_path):
    def half(source, target):
        (target / "train").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiny_imagenet.shutil, "copytree", half)
        prepare("tiny_imagenet", tmp_path / "root", source=mini_tiny)
    prepare("tiny_imagenet", tmp_path / "root", source=mini_tiny)
    check_arranged(tmp_path / "root", mini_tiny)


def test_rearranged_by_another_tool(mini_tiny, tmp_path):
    """Half of it, in class folders with or without `images`; at the end without annotations."""
    root = tmp_path / "root"
    shutil.copytree(mini_tiny, root)
    for i, name in enumerate(sorted(WHERE)[:4]):
        folder = root / "val" / WHERE[name] / ("images" if i % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        os.rename(root / "val" / "images" / name, folder / name)
    os.rename(root / "val" / "images" / "val_4.JPEG", root / "val" / "val_4.JPEG")
    assert [row.images for row in prepare("tiny_imagenet", root).rows] == [6, 6]
    assert images(root) == images(mini_tiny)
    (root / "val" / "val_annotations.txt").unlink()
    assert [row.images for row in prepare("tiny_imagenet", root).rows] == [6, 6]


def no_annotations(val):
    (val / "val_annotations.txt").unlink()


def cut_annotations(val):
    (val / "val_annotations.txt").write_text("val_0.JPEG\tn0144")


def stranger(val):
    shutil.copy(val / "images" / "val_0.JPEG", val / "images" / "new.JPEG")


def twice(val):
    (val / IDS[0]).mkdir()
    (val / IDS[0] / "val_0.JPEG").write_bytes(b"another image of that name")


def misplaced(val):
    (val / IDS[1]).mkdir()
    os.rename(val / "images" / "val_0.JPEG", val / IDS[1] / "val_0.JPEG")


def lost(val):
    (val / "images" / "val_5.JPEG").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_annotations, "cannot read .*val_annotations.txt"),
        (cut_annotations, "line 1 names no class of train"),
        (stranger, "1 validation images have no class: new.JPEG"),
        (twice, "1 validation images are there twice: val_0.JPEG"),
        (misplaced, "1 validation images lie in the wrong class folder: val_0.JPEG"),
        (lost, "1 validation images are missing: val_5.JPEG"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_moves(mini_tiny, tree, harm, words):
    harm(mini_tiny / "val")
    before = tree(mini_tiny)
    with pytest.raises(UserError, match=words):
        prepare("tiny_imagenet", mini_tiny)
    assert tree(mini_tiny) == before


def test_other_files_among_the_images_are_named(mini_tiny):
    (mini_tiny / "val" / "images" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="files are left in .*images: notes.txt"):
        prepare("tiny_imagenet", mini_tiny)
    assert (mini_tiny / "val" / "images" / "notes.txt").read_text() == "mine"
    (mini_tiny / "val" / "images" / "notes.txt").unlink()
    assert prepare("tiny_imagenet", mini_tiny).rows[1].images == 6


def test_a_part_of_the_set_in_the_root(mini_tiny, mini_tiny_zip, tmp_path, tree):
    root = tmp_path / "root"
    shutil.copytree(mini_tiny / "train", root / "train")
    before = tree(root)
    with pytest.raises(UserError, match="only a part of tiny_imagenet is there: .*root/train"):
        prepare("tiny_imagenet", root, source=mini_tiny_zip)
    assert tree(root) == before


def test_root_within_the_source(mini_tiny, tree):
    before = tree(mini_tiny)
    with pytest.raises(UserError, match="--root lies in the tree of --from"):
        prepare("tiny_imagenet", mini_tiny / "train" / "new", source=mini_tiny)
    assert tree(mini_tiny) == before


def test_wrong_source(mini_tiny_zip, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Tiny-ImageNet in .*empty"):
        prepare("tiny_imagenet", tmp_path / "root", source=tmp_path / "empty")
    other = shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "empty")
    with pytest.raises(UserError, match="no Tiny-ImageNet in .*other.zip"):
        prepare("tiny_imagenet", tmp_path / "root", source=other)
    (tmp_path / "broken.zip").write_bytes(mini_tiny_zip.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot unpack .*broken.zip"):
        prepare("tiny_imagenet", tmp_path / "root", source=tmp_path / "broken.zip")
    assert not list((tmp_path / "root").iterdir())


def test_a_class_that_lost_an_image(mini_tiny):
    (mini_tiny / "train" / IDS[1] / "images" / f"{IDS[1]}_0.JPEG").unlink()
    with pytest.raises(UserError, match=f"class {IDS[1]} of train has 1 images"):
        prepare("tiny_imagenet", mini_tiny)
