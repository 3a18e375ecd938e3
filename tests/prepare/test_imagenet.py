"""ImageNet from its archives by torchvision, ImageNet-100 as links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from torchvision.datasets import imagenet as tv_imagenet

from solo_minent.cli import main
from solo_minent.data.datasets import load_split
from solo_minent.errors import UserError
from solo_minent.prepare import check, imagenet, prepare

IDS = ["n01440764", "n01443537", "n01484850"]
# Image i of the fake validation archive has the label 3 - i % 3, counted from 1.
LABELS = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": IDS[2 - i % 3] for i in range(6)}


@pytest.fixture
def imagenet_tree(tmp_path, image_bytes):
    """Five classes with 2 training and 1 validation image each."""
    root = tmp_path / "imagenet"
    for i in range(5):
        for split, count in (("train", 2), ("val", 1)):
            folder = root / split / f"n0000000{i}"
            folder.mkdir(parents=True)
            for j in range(count):
                (folder / f"{j}.JPEG").write_bytes(image_bytes(10 * i + j))
    return root


@pytest.fixture
def own_list(tmp_path, monkeypatch):
    """A class list of two of the five classes; counts to match."""
    known = {"train": check.Known(2, None), "test": check.Known(2, 2, 1)}
    monkeypatch.setitem(check.KNOWN, "imagenet100", known)
    path = tmp_path / "classes.txt"
    path.write_text("# mine\nn00000003\n\nn00000001  # second\n")
    return path


def test_archives(mini_imagenet_tars, tmp_path, tree):
    before = tree(mini_imagenet_tars)
    root = tmp_path / "root"
    done = prepare("imagenet", root, source=mini_imagenet_tars, verify=True)
    assert [tuple(row) for row in done.rows] == [("train", 6, 3, 2, 2), ("test", 6, 3, 2, 2)]
    assert {p.name: p.parent.name for p in root.glob("val/*/*")} == LABELS
    assert sorted(p.name for p in root.glob("train/*/*")) == [
        f"{wnid}_{i}.JPEG" for wnid in IDS for i in range(2)
    ]
    assert load_split("imagenet", root, "train").classes == IDS
    assert sorted(p.name for p in root.iterdir()) == ["train", "val"]
    assert tree(mini_imagenet_tars) == before
    shutil.rmtree(mini_imagenet_tars)
    assert prepare("imagenet", root).rows == done.rows


def test_archives_in_the_root(mini_imagenet_tars):
    assert prepare("imagenet", mini_imagenet_tars).rows[0].images == 6


@pytest.mark.parametrize("stop_at", ["parse_train_archive", "parse_val_archive"])
def test_killed_while_unpacking(mini_imagenet_tars, monkeypatch, tmp_path, stop_at):
    root = tmp_path / "root"
    parsed = []

    def half(folder, file):
        split = "train" if "train" in stop_at else "val"
        (Path(folder) / split / IDS[0]).mkdir(parents=True)
        (Path(folder) / split / f"{IDS[1]}.tar").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tv_imagenet, stop_at, half)
        prepare("imagenet", root, source=mini_imagenet_tars)
    assert not (root / "train").exists()  # nothing half unpacked has the final name
    val = tv_imagenet.parse_val_archive
    monkeypatch.setattr(tv_imagenet, "parse_val_archive", lambda *given: parsed.append(val(*given)))
    rows = prepare("imagenet", root, source=mini_imagenet_tars).rows  # val is not unpacked twice
    assert [row.images for row in rows] == [6, 6]
    assert len(parsed) == (stop_at == "parse_val_archive")
    assert sorted(p.name for p in root.iterdir()) == ["train", "val"]


def test_licence_and_missing_archives_are_told(mini_imagenet_tars, tmp_path):
    with pytest.raises(UserError, match="register at https://image-net.org") as caught:
        prepare("imagenet", tmp_path / "root")
    for name, _ in tv_imagenet.ARCHIVE_META.values():
        assert name in str(caught.value)
    assert f"prepare imagenet --root {tmp_path / 'root'} --from" in str(caught.value)
    assert not (tmp_path / "root").exists()
    (mini_imagenet_tars / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match="is not there: .*/tars/ILSVRC2012_devkit_t12.tar.gz. Its"):
        prepare("imagenet", tmp_path / "root", source=mini_imagenet_tars)


def test_damaged_archive(mini_imagenet_tars, tmp_path):
    path = mini_imagenet_tars / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="archive is damaged: .*img_train.tar. Its MD5"):
        prepare("imagenet", tmp_path / "root", source=mini_imagenet_tars)
    assert not (tmp_path / "root" / "train").exists()
    assert not (tmp_path / "root" / ".prepare-imagenet").exists()


def test_flat_validation_images_are_sorted(mini_imagenet_tars, tmp_path):
    root = tmp_path / "root"
    prepare("imagenet", root, source=mini_imagenet_tars)
    for path in sorted(root.glob("val/*/*"))[:4]:  # as a killed run leaves them: two are in place
        os.rename(path, root / "val" / path.name)
    with pytest.raises(UserError, match="is not there: .*/root/ILSVRC2012_devkit_t12.tar.gz"):
        prepare("imagenet", root)
    rows = prepare("imagenet", root, source=mini_imagenet_tars).rows
    assert {p.name: p.parent.name for p in root.glob("val/*/*")} == LABELS
    assert [row.images for row in rows] == [6, 6]
    (root / "val" / "ILSVRC2012_val_00000007.JPEG").write_bytes(b"one too many")
    with pytest.raises(UserError, match="no validation image has that number: .*7.JPEG"):
        prepare("imagenet", root, source=mini_imagenet_tars)


def test_tree_as_source_of_imagenet(imagenet_tree, tmp_path):
    with pytest.raises(UserError, match="unpacked tree already"):
        prepare("imagenet", tmp_path / "root", source=imagenet_tree)


def test_links_and_again(imagenet_tree, own_list, tmp_path, tree):
    root, before = tmp_path / "root", tree(imagenet_tree)
    done = prepare("imagenet100", root, source=imagenet_tree, classes=own_list, verify=True)
    assert done.dataset == "custom"  # two classes are no ImageNet-100
    assert [tuple(row) for row in done.rows] == [("train", 4, 2, 2, 2), ("test", 2, 2, 1, 1)]
    assert tree(root) == {
        f"{split}/{name}": f"-> {imagenet_tree / split / name}"
        for split in ("train", "val")
        for name in ("n00000001", "n00000003")
    }
    assert load_split("custom", root, "test").classes == ["n00000001", "n00000003"]
    (root / "train" / "n00000003").unlink()  # a killed run made some of them only
    kept = os.lstat(root / "train" / "n00000001").st_mtime_ns
    prepare("imagenet100", root, source=imagenet_tree, classes=own_list)
    assert (root / "train" / "n00000003").is_dir()
    assert os.lstat(root / "train" / "n00000001").st_mtime_ns == kept
    prepare("imagenet100", root, classes=own_list)  # without --from: checked only
    assert tree(imagenet_tree) == before


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "file", "extra"])
def test_what_is_in_the_way_is_named_and_kept(imagenet_tree, own_list, tmp_path, tree, kind):
    root = tmp_path / "root"
    place = root / "train" / ("n00000002" if kind == "extra" else "n00000001")
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(imagenet_tree / "train" / "n00000002")
    elif kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
    before = tree(root)
    with pytest.raises(UserError, match=f"1 other files or links are in the way: {place}"):
        prepare("imagenet100", root, source=imagenet_tree, classes=own_list)
    assert tree(root) == before and not (root / "val").exists()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda t: shutil.rmtree(t / "val"), "no ImageNet tree: .*val is not there"),
        (lambda t: shutil.rmtree(t / "val" / "n00000003"), "1 of 4 class folders .*val/n00000003"),
        (lambda t: [shutil.rmtree(d) for d in (t / "val").iterdir()], "no class folders: .*val"),
    ],
)
def test_wrong_imagenet_tree(imagenet_tree, own_list, tmp_path, harm, words):
    harm(imagenet_tree)
    with pytest.raises(UserError, match=words):
        prepare("imagenet100", tmp_path / "root", source=imagenet_tree, classes=own_list)
    assert not (tmp_path / "root").exists()


def test_an_empty_class_and_a_wrong_count(imagenet_tree, own_list, tmp_path):
    (imagenet_tree / "val" / "n00000003" / "0.JPEG").unlink()
    with pytest.raises(UserError, match="n00000003"):
        prepare("imagenet100", tmp_path / "root", source=imagenet_tree, classes=own_list)
    for i in range(2):
        shutil.copy(
            imagenet_tree / "val" / "n00000001" / "0.JPEG",
            imagenet_tree / "val" / "n00000003" / f"{i}.JPEG",
        )
    with pytest.raises(UserError, match="class n00000003 of test has 2 images.*must have 1"):
        prepare("imagenet100", tmp_path / "root", source=imagenet_tree, classes=own_list)


def test_other_classes_than_listed(imagenet_tree, own_list, tmp_path):
    root = tmp_path / "root"
    prepare("imagenet100", root, source=imagenet_tree, classes=own_list)
    with pytest.raises(UserError, match="imagenet100 has 100 classes, this is another set"):
        prepare("imagenet100", root)
    other = tmp_path / "other.txt"
    other.write_text("n00000001\nn00000004\n")
    with pytest.raises(UserError, match="other classes than imagenet100: n00000003, n00000004"):
        prepare("imagenet100", root, classes=other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no class in"),
        ("n00000001\nn00000001\n", "n00000001 in"),
        ("../../etc\n", "../../etc in"),
        ("..\n", r"\.\. in"),
        (b"\xff\xfe", "cannot read the class list"),
    ],
)
def test_wrong_class_list(imagenet_tree, tmp_path, text, words):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        prepare("imagenet100", tmp_path / "root", source=imagenet_tree, classes=path)


def test_imagenet100_needs_a_source(tmp_path):
    with pytest.raises(UserError, match="--from is not set"):
        prepare("imagenet100", tmp_path / "root")


def test_standard_classes_and_counts(tmp_path, image_bytes, capsys):
    """All 100 classes out of a tree of 101, with the counts of the real set."""
    tree, data = tmp_path / "tree", image_bytes(0)
    names = imagenet.class_list(imagenet.Job("imagenet100", tmp_path))
    for name in [*names, "n00000000"]:
        for split, count in (("train", 1), ("val", 50)):
            (tree / split / name).mkdir(parents=True)
            for i in range(count):
                (tree / split / name / f"{i}.JPEG").write_bytes(data)
    root = tmp_path / "root"
    assert main(["prepare", "imagenet100", "--root", str(root), "--from", str(tree)]) == 0
    assert f"ready: data.dataset=imagenet100 data.root={root}" in capsys.readouterr().out
    assert len(load_split("imagenet100", root, "test")) == 5000
    (tree / "val" / names[7] / "49.JPEG").unlink()
    assert main(["prepare", "imagenet100", "--root", str(root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: class {names[7]} of test has 49 images") and "50" in said


def test_the_standard_list_is_in_the_package(tmp_path):
    names = imagenet.class_list(imagenet.Job("imagenet100", tmp_path))
    assert len(names) == 100 and names == sorted(names)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
    assert (names[0], names[-1]) == ("n01558993", "n13040303")
