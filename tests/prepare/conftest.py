"""The data sets in miniature: real layouts and file formats, MD5 sums to match, a local server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv
from torchvision.datasets import imagenet as tv_imagenet

from solo_minent.data import folders
from solo_minent.prepare import check, tiny_imagenet
from solo_minent.prepare.check import Known

WNIDS = ["n01440764", "n01443537", "n01484850"]


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def photo(seed, kind="JPEG"):
    pixels = np.random.RandomState(seed).randint(0, 256, (12, 16, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def tree():
    """`tree(folder)`: every file below it with its bytes; links as `-> target`."""

    def read(folder):
        return {
            str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_bytes()
            for p in sorted(Path(folder).rglob("*"))
            if p.is_symlink() or p.is_file()
        }

    return read


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `server.folder` at `server.url`; `server.asked` lists the GET requests."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.headers.get("Method") != "HEAD":  # torchvision's look for redirects
                asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    serve = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    thread = threading.Thread(target=serve.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    serve.folder, serve.url, serve.asked = folder, f"http://127.0.0.1:{serve.server_port}", asked
    yield serve
    serve.shutdown()
    serve.server_close()
    thread.join()


@pytest.fixture
def no_server():
    """An address where nobody listens."""
    return "http://127.0.0.1:9"


@pytest.fixture
def mini_cifar10(tmp_path, monkeypatch):
    """Archive of CIFAR-10 with 40 training and 20 test images."""
    folder = tmp_path / "make" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    def batch(name):
        pixels = rng.randint(0, 256, (20, 3072)).astype(np.uint8)
        return write(name, {"data": pixels, "labels": list(range(10)) * 2})

    monkeypatch.setattr(tv.CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [batch("test_batch")])
    name, digest = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": digest}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    known = {"train": Known(10, 40, 4), "test": Known(10, 20, 2)}
    monkeypatch.setitem(check.KNOWN, "cifar10", known)
    archive = _tar(folder, tmp_path / tv.CIFAR10.filename)
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5(archive))
    return archive


@pytest.fixture
def mini_stl10(tmp_path, monkeypatch):
    """Archive of STL-10 with 10 labelled, 10 test and 5 unlabelled images."""
    folder = tmp_path / "make" / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for name, count in (("train", 10), ("test", 10), ("unlabeled", 5)):
        pixels = rng.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        (folder / f"{name}_X.bin").write_bytes(pixels.tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(range(1, 11)))
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    (folder / "fold_indices.txt").write_text("0 1 2\n" * 10)
    for files in ("train_list", "test_list"):
        made = [[name, md5(folder / name)] for name, _ in getattr(tv.STL10, files)]
        monkeypatch.setattr(tv.STL10, files, made)
    known = {"pretrain": Known(10, 15), "train": Known(10, 10, 1), "test": Known(10, 10, 1)}
    monkeypatch.setitem(check.KNOWN, "stl10", known)
    archive = _tar(folder, tmp_path / tv.STL10.filename)
    monkeypatch.setattr(tv.STL10, "tgz_md5", md5(archive))
    return archive


@pytest.fixture
def mini_tiny(tmp_path, monkeypatch):
    """Tiny-ImageNet as published, 3 classes with 2 training and 2 validation images each."""
    folder = tmp_path / "make" / "tiny-imagenet-200"
    for i, wnid in enumerate(WNIDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for j in range(2):
            path = folder / "train" / wnid / "images" / f"{wnid}_{j}.JPEG"
            path.write_bytes(photo(10 * i + j))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(6):
        (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(photo(100 + i))
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    known = {"train": Known(3, 6, 2), "test": Known(3, 6, 2)}
    monkeypatch.setitem(check.KNOWN, "tiny_imagenet", known)
    monkeypatch.setitem(folders.CLASS_COUNTS, "tiny_imagenet", 3)
    return folder


@pytest.fixture
def mini_tiny_zip(mini_tiny, monkeypatch):
    """The zip of `mini_tiny`; the address to download it from is left to the test."""
    name = shutil.make_archive(
        str(mini_tiny.parent / "tiny-imagenet-200"), "zip", mini_tiny.parent, mini_tiny.name
    )
    archive = tiny_imagenet.ARCHIVE
    changed = archive.__class__(archive.url, archive.filename, md5(name), 1, 1)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", changed)
    return Path(name)


@pytest.fixture
def mini_imagenet_tars(tmp_path, monkeypatch):
    """Folder with the three archives of ILSVRC 2012: 3 classes, 6 training, 6 validation images."""
    import scipy.io

    folder, work = tmp_path / "tars", tmp_path / "make"
    folder.mkdir()
    names = {kind: name for kind, (name, _) in tv_imagenet.ARCHIVE_META.items()}
    train = work / "train"
    for i, wnid in enumerate(WNIDS):
        (train / wnid).mkdir(parents=True)
        for j in range(2):
            (train / wnid / f"{wnid}_{j}.JPEG").write_bytes(photo(10 * i + j))
        with tarfile.open(train / f"{wnid}.tar", "w") as tar:
            for path in sorted((train / wnid).iterdir()):
                tar.add(path, path.name)
    with tarfile.open(folder / names["train"], "w") as tar:
        for wnid in WNIDS:
            tar.add(train / f"{wnid}.tar", f"{wnid}.tar")
    with tarfile.open(folder / names["val"], "w") as tar:
        for i in range(6):
            data, info = photo(100 + i), tarfile.TarInfo(f"ILSVRC2012_val_{i + 1:08d}.JPEG")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    kit = work / "ILSVRC2012_devkit_t12"
    (kit / "data").mkdir(parents=True)
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.zeros((4, 1), dtype=[(name, object) for name in fields])
    for i, wnid in enumerate(WNIDS):
        synsets[i, 0] = (i + 1, wnid, f"word{i}, other", "gloss", 0)
    synsets[3, 0] = (4, "n00000001", "parent", "gloss", 3)
    scipy.io.savemat(kit / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{3 - i % 3}\n" for i in range(6))
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    _tar(kit, folder / names["devkit"])
    meta = {kind: (name, md5(folder / name)) for kind, name in names.items()}
    monkeypatch.setattr(tv_imagenet, "ARCHIVE_META", meta)
    known = {"train": Known(3, 6), "test": Known(3, 6, 2)}
    monkeypatch.setitem(check.KNOWN, "imagenet", known)
    monkeypatch.setitem(folders.CLASS_COUNTS, "imagenet", 3)
    return folder


def _tar(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.fixture
def image_bytes():
    """`image_bytes(seed)`: a JPEG file; `kind="PNG"` another."""
    return photo
