"""CIFAR and STL-10: whole or not at all, whatever the network does."""

from __future__ import annotations

import os
import shutil

import pytest
from torchvision import datasets as tv

from solo_minent.data.datasets import load_split
from solo_minent.errors import UserError
from solo_minent.prepare import archives, prepare, published

FOLDER = "cifar-10-batches-py"


@pytest.fixture
def online(server, mini_cifar10, monkeypatch):
    """CIFAR-10's archive on the local server."""
    shutil.copy(mini_cifar10, server.folder)
    monkeypatch.setattr(tv.CIFAR10, "url", f"{server.url}/{mini_cifar10.name}")
    return server


def test_downloads_once_and_leaves_the_set_alone(online, tmp_path, tree):
    root = tmp_path / "new" / "root"
    done = prepare("cifar10", root, verify=True)
    assert [tuple(row) for row in done.rows] == [("train", 40, 10, 4, 4), ("test", 20, 10, 2, 2)]
    assert len(online.asked) == 1
    assert [p.name for p in root.iterdir()] == [FOLDER]
    assert len(load_split("cifar10", done.root, "train")) == 40
    before = tree(root)
    stamps = [p.stat().st_mtime_ns for p in sorted(root.rglob("*"))]
    assert prepare("cifar10", root).root == root
    assert tree(root) == before and len(online.asked) == 1
    assert [p.stat().st_mtime_ns for p in sorted(root.rglob("*"))] == stamps


def test_stl10(server, mini_stl10, monkeypatch, tmp_path):
    shutil.copy(mini_stl10, server.folder)
    monkeypatch.setattr(tv.STL10, "url", f"{server.url}/{mini_stl10.name}")
    done = prepare("stl10", tmp_path / "root")
    assert {row.split: row.images for row in done.rows} == {"pretrain": 15, "train": 10, "test": 10}
    (tmp_path / "root" / "stl10_binary" / "class_names.txt").unlink()
    prepare("stl10", tmp_path / "root")
    assert (tmp_path / "root" / "stl10_binary" / "class_names.txt").is_file()


def test_no_network_says_what_to_do_by_hand(no_server, mini_cifar10, monkeypatch, tmp_path):
    monkeypatch.setattr(tv.CIFAR10, "url", f"{no_server}/{mini_cifar10.name}")
    root = tmp_path / "root"
    with pytest.raises(UserError, match="cannot download") as caught:
        prepare("cifar10", root)
    by_hand = f"put it at {root / mini_cifar10.name} and run again: solo-minent prepare cifar10"
    assert by_hand in str(caught.value) and no_server in str(caught.value)
    assert not list(root.iterdir())
    shutil.copy(mini_cifar10, root)  # as the message says
    assert prepare("cifar10", root).rows[0].images == 40
    assert sorted(p.name for p in root.iterdir()) == [FOLDER, mini_cifar10.name]


def test_damaged_download_is_refused_and_removed(online, mini_cifar10, tmp_path):
    served = online.folder / mini_cifar10.name
    served.write_bytes(served.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"download is damaged: {online.url}.*{tv.CIFAR10.tgz_md5}"):
        prepare("cifar10", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_missing_page(online, mini_cifar10, tmp_path):
    (online.folder / mini_cifar10.name).unlink()
    with pytest.raises(UserError, match="cannot download .*404"):
        prepare("cifar10", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_stopped_while_downloading_leaves_nothing(online, monkeypatch, tmp_path):
    from torchvision.datasets import utils

    def stop(url, filename, *_):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(utils, "_urlretrieve", stop)
        prepare("cifar10", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    assert prepare("cifar10", tmp_path / "root").rows[0].images == 40


def test_killed_while_unpacking_goes_on_without_a_second_download(online, monkeypatch, tmp_path):
    root = tmp_path / "root"

    def stop(job, archive, folder):
        folder.mkdir(parents=True)
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(published, "unpack", stop)
        prepare("cifar10", root)
    with pytest.raises(UserError, match="not found"):
        load_split("cifar10", root, "train")
    assert prepare("cifar10", root).rows[0].images == 40
    assert len(online.asked) == 1
    assert [p.name for p in root.iterdir()] == [FOLDER]


def test_damaged_file_is_replaced_and_others_are_kept(online, tmp_path):
    root = tmp_path / "root"
    prepare("cifar10", root)
    folder = root / FOLDER
    (folder / "test_batch").write_bytes(b"broken")
    (folder / "batches.meta").unlink()
    (folder / "mine.txt").write_text("kept")
    stamp = (folder / "data_batch_1").stat().st_mtime_ns
    assert prepare("cifar10", root).rows[1].images == 20
    assert (folder / "mine.txt").read_text() == "kept"
    assert (folder / "data_batch_1").stat().st_mtime_ns == stamp
    assert [p.name for p in root.iterdir()] == [FOLDER]


def test_archive_of_a_run_killed_at_its_end_is_removed(online, tmp_path):
    root = tmp_path / "root"
    prepare("cifar10", root)
    (root / ".prepare-cifar10").mkdir()
    (root / ".prepare-cifar10" / "cifar-10-python.tar.gz").write_bytes(b"whole")
    prepare("cifar10", root)
    assert [p.name for p in root.iterdir()] == [FOLDER]


@pytest.mark.parametrize("as_folder", [False, True])
def test_from_an_archive_that_is_there(mini_cifar10, no_server, monkeypatch, tmp_path, as_folder):
    monkeypatch.setattr(tv.CIFAR10, "url", no_server)
    source = mini_cifar10.parent if as_folder else mini_cifar10
    digest = mini_cifar10.read_bytes()
    assert prepare("cifar10", tmp_path / "root", source=source).rows[0].images == 40
    assert mini_cifar10.read_bytes() == digest


def test_from_what_is_no_archive(mini_cifar10, tmp_path):
    wrong = tmp_path / "wrong.tar.gz"
    wrong.write_bytes(b"no archive")
    with pytest.raises(UserError, match=f"archive is damaged: {wrong}"):
        prepare("cifar10", tmp_path / "root", source=wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="archive is not there: .*empty/cifar-10-python.tar.gz"):
        prepare("cifar10", tmp_path / "root", source=tmp_path / "empty")
    assert not (tmp_path / "root").exists()


def test_folder_of_the_set_itself_as_root(online, tmp_path):
    prepare("cifar10", tmp_path / "root")
    assert prepare("cifar10", tmp_path / "root" / FOLDER).root == tmp_path / "root"
    assert len(online.asked) == 1
    os.rename(tmp_path / "root", tmp_path / "cifar10")
    assert prepare("cifar10", tmp_path).root == tmp_path / "cifar10"


def test_other_counts_than_published(online, monkeypatch, tmp_path):
    from solo_minent.prepare import check

    monkeypatch.setitem(check.KNOWN["cifar10"], "test", check.Known(10, 30, 3))
    with pytest.raises(UserError, match="class class0 of test has 2 images.*must have 3"):
        prepare("cifar10", tmp_path / "root")


def test_full_disk_is_told_before_the_download(online, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="too little space in .*0.1 GiB are free.*needs 0.3 GiB"):
        prepare("cifar10", tmp_path / "root")
    assert not online.asked and not (tmp_path / "root").exists()


def test_disk_that_fills_up_is_told(online, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(published, "unpack", full)
    with pytest.raises(UserError, match="cannot prepare cifar10: .*No space left on device"):
        prepare("cifar10", tmp_path / "root")


def test_folder_that_cannot_be_written():
    with pytest.raises(UserError, match="cannot write to /proc"):  # not even by root
        prepare("cifar10", "/proc/data")


def test_tar_members_stay_in_their_folder(tmp_path):
    import io
    import tarfile

    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("../outside.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    job = archives.Job("cifar10", tmp_path / "root")
    with pytest.raises(UserError, match="cannot unpack .*outside"):
        archives.unpack(job, path, job.staging / "unpacked")
    assert not list(tmp_path.rglob("outside.txt"))
    assert tarfile.TarFile.extraction_filter is None
