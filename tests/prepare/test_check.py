"""Every image is decoded, every count compared, and the command says what it found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from solo_minent.cli import main
from solo_minent.data.datasets import load_split
from solo_minent.errors import UserError
from solo_minent.prepare import archives, prepare
from solo_minent.prepare.check import KNOWN, find_corrupt, load_all


@pytest.fixture
def own_set(tmp_path, image_bytes):
    """`own_set(train__a=3)`: a custom set of JPEG files."""

    def build(**counts):
        root = tmp_path / "own"
        for place, count in counts.items():
            folder = root / place.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (folder / f"{i:03d}.jpg").write_bytes(image_bytes(i))
        return root

    return build


def test_custom_is_checked_only(own_set, tree):
    root = own_set(train__a=3, train__b=1, val__a=1)
    before = tree(root)
    rows = prepare("custom", root, verify=True).rows
    assert [tuple(row) for row in rows] == [("train", 4, 2, 1, 3), ("test", 1, 2, 0, 1)]
    assert tree(root) == before


def test_unlabelled_custom_needs_no_test(own_set):
    rows = prepare("custom", own_set(train=3)).rows
    assert [(row.split, row.images, row.classes) for row in rows] == [("train", 3, 0)]


def test_custom_with_labels_needs_a_test(own_set):
    with pytest.raises(UserError, match="val"):
        prepare("custom", own_set(train__a=2))


def test_corrupt_images_are_counted_and_named(own_set, image_bytes):
    root = own_set(train__a=80, val__a=3)
    harmed = [root / "train" / "a" / f"{i:03d}.jpg" for i in range(5, 30)]
    for path in harmed[:-2]:
        path.write_bytes(path.read_bytes()[:-60])  # the header is whole
    harmed[-2].write_bytes(b"")
    harmed[-1].write_bytes(b"<html>not found</html>")
    (root / "val" / "a" / "001.jpg").write_bytes(image_bytes(1)[:100])
    assert prepare("custom", root).rows[0].images == 80  # counting alone does not decode
    with pytest.raises(
        UserError, match=r"^corrupt images: 26\. The first 20: .*/train/a/005.jpg, "
    ) as caught:
        prepare("custom", root, verify=True)
    named = [path for path in harmed if str(path) in str(caught.value)]
    assert named == harmed[:20] and str(caught.value).count(".jpg") == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_find_corrupt(own_set, image_bytes, workers):
    root = own_set(train__a=70, val__a=1)
    (root / "train" / "a" / "066.jpg").write_bytes(image_bytes(3, "PNG")[:70])
    train = load_all("custom", root)["train"]
    (line,) = find_corrupt(train, "train", workers)
    assert line == str(root / "train" / "a" / "066.jpg")


def test_h5_files(own_set):
    root = own_set(train__a=3, train__b=1, val__b=2)
    done = prepare("custom", root, h5=True)
    assert sorted(done.h5) == [root / "train.h5", root / "val.h5"]
    for split in ("train", "test"):
        folder = load_split("custom", root, split)
        h5 = load_split("custom", root, split, format="h5")
        assert h5.targets.tolist() == folder.targets.tolist()
        for i in range(len(folder)):
            assert h5.encoded(i) == folder.encoded(i)
    (root / "val.h5").unlink()  # a killed run wrote the first alone
    stamp = (root / "train.h5").stat().st_mtime_ns
    assert prepare("custom", root, h5=True).h5 == [root / "val.h5"]
    own_set(train__b=2)
    with pytest.raises(UserError, match="another h5 file is there: .*train.h5.* has 4 .* set 5"):
        prepare("custom", root, h5=True)
    assert (root / "train.h5").stat().st_mtime_ns == stamp


def test_h5_of_digits_and_a_full_disk(tmp_path, monkeypatch):
    root = tmp_path / "digits"
    root.mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=10**5)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="too little space"):
        patch.setattr(archives.shutil, "disk_usage", lambda path: usage)
        prepare("digits", root, h5=True)
    assert not list(root.iterdir())
    prepare("digits", root, h5=True)
    assert len(load_split("digits", root, "test", format="h5")) == 359


def test_ctrl_c_stops_the_decoding(own_set):
    """In a process group of its own, as a terminal interrupts: workers and parent at once."""
    root = own_set(train__a=40, val__a=1)
    code = (
        "import sys, time\n"
        "from solo_minent.cli import main\n"
        "from solo_minent.prepare import check\n"
        "def slow(self, index):\n"
        "    print('decoding', flush=True)\n"
        "    time.sleep(600)\n"
        "check._Decoded.__getitem__ = slow\n"
        f"sys.exit(main(['prepare', 'custom', '--root', {str(root)!r}, '--verify']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "decoding\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == "stopped; the same command goes on from here\n"


def test_published_counts():
    total = {name: {s: k.images for s, k in splits.items()} for name, splits in KNOWN.items()}
    assert total["imagenet"] == {"train": 1_281_167, "test": 50_000}
    assert total["tiny_imagenet"] == {"train": 100_000, "test": 10_000}
    for splits in KNOWN.values():
        for known in splits.values():
            if known.images and known.of_each:
                assert known.images == known.classes * known.of_each


def test_digits(capsys):
    assert main(["prepare", "digits", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "nothing to prepare" in said and "1,438" in said and "359" in said


def test_command_prints_a_table(own_set, capsys):
    root = own_set(train__a=3, train__b=1, val__a=1)
    assert main(["prepare", "custom", "--root", str(root), "--verify"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[3].split() == ["train", "4", "2", "1", "to", "3"]
    assert said[-2:] == ["every image decodes", f"ready: data.dataset=custom data.root={root}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar_10", "--root", "x"], "unknown data set: cifar_10. Did you mean cifar10"),
        (["cifar10"], "--root is not set"),
        (["cifar10", "--root", "FILE"], "--root is not a folder"),
        (["cifar10", "--root", "FILE/below"], "--root is not a folder"),
        (["tiny_imagenet", "--root", "x", "--from", "/nowhere"], "--from does not exist: /nowhere"),
        (["imagenet100", "--root", "x", "--classes", "/no.txt"], "--classes does not exist"),
        (["cifar10", "--root", "x", "--classes", "FILE"], "--classes is not taken"),
        (["custom", "--root", "x", "--from", "FILE"], "--from is not taken"),
        (["custom", "--root", "/nowhere"], "no such folder: /nowhere"),
        ([], "the following arguments are required: dataset"),
    ],
)
def test_bad_input(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    arguments = [word.replace("FILE", str(tmp_path / "file")) for word in arguments]
    assert main(["prepare", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
