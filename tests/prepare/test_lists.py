"""SimCLR's lists of ImageNet's images: whole and the published ones, or not at all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest

from solo_minent.data.loaders import labelled_images
from solo_minent.errors import UserError
from solo_minent.prepare import lists, prepare, print_prepared
from solo_minent.schema import DataConfig, RunConfig

NAMES = {"1percent.txt": "n01440764_1.JPEG\n", "10percent.txt": "n01443537_0.JPEG\n"}


@pytest.fixture
def published(server, monkeypatch):
    """Lists of one image each on the local server."""
    for name, text in NAMES.items():
        (server.folder / name).write_text(text)
        data = text.encode()
        monkeypatch.setitem(lists.SHA256, name, hashlib.sha256(data).hexdigest())
        archive = replace(
            lists.LISTS[name], url=f"{server.url}/{name}", md5=hashlib.md5(data).hexdigest()
        )
        monkeypatch.setitem(lists.LISTS, name, archive)
    return server


def test_lists_are_fetched_once_and_choose_images(published, mini_imagenet_tars, tmp_path, capsys):
    root = tmp_path / "root"
    done = prepare("imagenet", root, source=mini_imagenet_tars, lists=True)
    assert done.lists == [root / name for name in NAMES]
    assert {path.name: path.read_text() for path in done.lists} == NAMES
    assert sorted(os.listdir(root)) == ["10percent.txt", "1percent.txt", "train", "val"]
    print_prepared(done)
    assert f"for data.file_list: {root / '1percent.txt'}" in capsys.readouterr().out
    data = DataConfig("imagenet", str(root), image_size=8, file_list=str(done.lists[0]))
    images = labelled_images(RunConfig(data=data), "train")
    assert images.file_names() == ["n01440764_1.JPEG"] and images.targets.tolist() == [0]
    asked = len(published.asked)
    assert asked == 2
    prepare("imagenet", root, lists=True)  # they are there
    assert len(published.asked) == asked
    assert prepare("imagenet", root).lists == []


def test_other_contents_are_refused(published, mini_imagenet_tars, tmp_path):
    (published.folder / "1percent.txt").write_text("n01440764_0.JPEG\n")
    root = tmp_path / "root"
    with pytest.raises(UserError, match="download is damaged: .*/1percent.txt"):
        prepare("imagenet", root, source=mini_imagenet_tars, lists=True)
    assert not (root / "1percent.txt").exists()


def test_a_list_of_the_same_md5_is_not_enough(published, mini_imagenet_tars, tmp_path, monkeypatch):
    monkeypatch.setitem(lists.SHA256, "10percent.txt", "0" * 64)
    root = tmp_path / "root"
    with pytest.raises(UserError, match="file list is damaged: .*10percent.txt. Its SHA-256 must"):
        prepare("imagenet", root, source=mini_imagenet_tars, lists=True)
    assert not (root / "10percent.txt").exists()


def test_without_a_network(no_server, mini_imagenet_tars, monkeypatch, tmp_path):
    for name, archive in lists.LISTS.items():
        monkeypatch.setitem(lists.LISTS, name, replace(archive, url=f"{no_server}/{name}"))
    root = tmp_path / "root"
    with pytest.raises(UserError, match="cannot download .*/1percent.txt") as caught:
        prepare("imagenet", root, source=mini_imagenet_tars, lists=True)
    assert f"put it at {root / '1percent.txt'}" in str(caught.value)
    assert f"prepare imagenet --root {root} --lists" in str(caught.value)
    assert (root / "train").is_dir()  # the images are ready all the same


def test_only_imagenet_has_lists(tmp_path):
    with pytest.raises(UserError, match="--lists is not taken: .* of imagenet, not of cifar10"):
        prepare("cifar10", tmp_path, lists=True)


def test_the_addresses_are_pinned():
    for name, archive in lists.LISTS.items():
        assert archive.url == (
            "https://raw.githubusercontent.com/google-research/simclr/"
            f"383d4143fd8cf7879ae10f1046a9baeb753ff438/imagenet_subsets/{name}"
        )
        assert len(lists.SHA256[name]) == 64 and len(archive.md5) == 32
