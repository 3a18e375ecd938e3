"""Damaged image files: every loader names one or skips and counts them all, and lives on.

Five kinds of damage to JPEGs of real photographs, each drawn from a seed. What is unreadable is
what Pillow refuses, or what claims a size that cannot be (`data.images.open_image`); files that a
flipped bit left readable are images like any other.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from solo_minent.data.datasets import load_split
from solo_minent.data.h5 import write_h5
from solo_minent.data.images import FORMATS

SCRIPT = Path(__file__).with_name("read_damaged.py")
BATCH = 20  # of the script
GOOD = 40
SIZE = (80, 64)
# format, "-eval" for the loader of evaluations; workers
LOADERS = [
    ("image_folder", 0),
    ("image_folder", 2),
    ("image_folder-eval", 0),
    ("image_folder-eval", 2),
    ("h5", 0),
    ("h5", 2),
    ("h5-eval", 2),
    ("device", 0),
    ("dali", 1),
]
BY_FORKSERVER = ("dali-eval", 2)  # where DALI may run in the process: slow to start
SIZES = [  # (height, width) that a header may claim
    (65500, 65500),
    (65535, 65535),
    (20000, 8000),
    (13000, 13000),
    (4000, 3000),
    (65500, 1),
    (1, 65500),
    (65500, 16),
    (0, 64),
    (64, 0),
]


def jpeg(rng, size):
    """A part of a photograph: baseline, progressive, with own tables or with restart marks."""
    photos = load_sample_images().images
    photo = Image.fromarray(photos[rng.integers(len(photos))])
    side = int(rng.integers(min(size), 420))
    x, y = rng.integers(photo.width - side), rng.integers(photo.height - side)
    photo = photo.crop((x, y, x + side, y + side)).resize(size)
    kind = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}]
    buffer = io.BytesIO()
    quality, subsampling = int(rng.integers(60, 96)), int(rng.integers(3))
    photo.save(
        buffer, "JPEG", quality=quality, subsampling=subsampling, **kind[rng.integers(len(kind))]
    )
    return buffer.getvalue()


def truncated(rng, data):
    return data[: rng.integers(1, len(data))]


def flipped(rng, data):
    """1 to 16 flipped bits, in every second file within the header."""
    pixels = np.frombuffer(data, np.uint8).copy()
    count = int(rng.integers(1, 17))
    end = min(len(data), 700) if rng.random() < 0.5 else len(data)
    at = rng.integers(0, end, count)
    pixels[at] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
    return pixels.tobytes()


def zeros(rng, data):
    """No bytes, zeros alone, or a run of zeros."""
    kind, start = rng.integers(4), int(rng.integers(len(data)))
    if kind < 2:
        return b"" if kind == 0 else bytes(len(data))
    room = len(data) - start
    count = int(rng.integers(1, room + 1)) if kind == 2 else min(512, room)
    return data[:start] + bytes(count) + data[start + count :]


def huge(rng, data):
    """Another size in the header."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):  # frame of a baseline or progressive JPEG
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return data[: at + 5] + struct.pack(">HH", *SIZES[rng.integers(len(SIZES))]) + data[at + 9 :]


def wrong_type(rng, data):
    kinds = ("PNG", "GIF", "BMP", "TIFF", "PDF", "EPS", "WEBP", "TGA", "zip", "text", "html", "pdf")
    kind = [*kinds, "noise", "JPEG of noise"][rng.integers(len(kinds) + 2)]
    buffer, noise = io.BytesIO(), rng.integers(0, 256, 900, dtype=np.uint8).tobytes()
    if kind.isupper():
        Image.open(io.BytesIO(data)).save(buffer, kind)
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.jpg", data)
    return buffer.getvalue() or {
        "text": b"no image here\n" * 9,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n" + noise,
        "noise": noise,
        "JPEG of noise": b"\xff\xd8\xff" + noise + b"\xff\xd9",
    }.get(kind, b"")


DAMAGE = (truncated, flipped, wrong_type, zeros, huge)


def refused(data):
    """The size of an image in pixels, or None if it is refused."""
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            width, height = image.size
            invented = image.format in ("JPEG", "MPO") and width * height > 512 * len(data)
            if invented or max(width, height) > 256 * min(width, height):
                return None
            return image.convert("RGB").size
    except Exception:
        return None


class Campaign(NamedTuple):
    """sizes: of each file by name, None where it is refused; of_root: names below a root;
    results: what the script printed, by (root, loader, workers, on_corrupt)."""

    sizes: dict[str, tuple[int, int] | None]
    of_root: dict[str, set[str]]
    results: dict[tuple[str, str, int, str], dict]
    stderr: str
    code: int

    def unreadable(self, root):
        return sorted(name for name in self.of_root[root] if self.sizes[name] is None)


def write_files(base, count, seed, size):
    """`count` files of each kind of damage below base/all/train and others, some whole ones too.

    same: those that are unreadable or of one size; other: whole ones and one of another size;
    good: whole ones. The sizes of all by name.
    """
    sizes, roots = {}, {name: base / name / "train" for name in ("all", "same", "other", "good")}
    for root in roots.values():
        for label in "ab":
            (root / label).mkdir(parents=True)

    def put(name, data, where):
        sizes[name] = refused(data)
        for root in where:
            (roots[root] / "ab"[len(sizes) % 2] / name).write_bytes(data)

    for number in range(GOOD):
        data = jpeg(np.random.default_rng((seed, 9, number)), SIZE)
        put(f"good{number:05}.jpg", data, roots)
    others = 0
    for family, damage in enumerate(DAMAGE):
        for number in range(count):
            rng = np.random.default_rng((seed, family, number))
            sides = size or tuple(int(side) for side in rng.integers(48, 401, 2))
            data, name = damage(rng, jpeg(rng, sides)), f"{damage.__name__}{number:05}.jpg"
            put(name, data, ["all"])
            if sizes[name] in (None, SIZE):
                put(name, data, ["same"])
            elif not others:
                put(name, data, ["other"])
                others += 1
    for root in roots:  # an epoch drops what fills no batch
        number = 0
        while len(list(roots[root].glob("*/*.jpg"))) % BATCH:
            name = f"more{number:05}.jpg"
            put(name, jpeg(np.random.default_rng((seed, 10, number)), SIZE), [root])
            number += 1
    return sizes


def read_all(base, count, seed, size, timeout, loaders=LOADERS):
    """Damages files, reads them with these loaders in a process of its own."""
    sizes = write_files(base, count, seed, size)
    write_h5(load_split("custom", base / "all", "train"), base / "all" / "train.h5", False)
    jobs = [["good", "image_folder", 2, "error"], ["good", "image_folder-eval", 0, "error"]]
    for loader, workers in loaders:
        if loader == "dali":
            jobs.append(["good", loader, workers, "error"])
        root = "same" if loader == "device" else "all"
        jobs += [[root, loader, workers, on_corrupt] for on_corrupt in ("skip", "error")]
    jobs += [["other", "device", 0, on_corrupt] for on_corrupt in ("skip", "error")]
    (base / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(SCRIPT), "jobs.json"]
    done = subprocess.run(
        command, cwd=base, capture_output=True, text=True, errors="replace", timeout=timeout
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    results = {tuple(line["job"]): line for line in lines}
    of_root = {
        root: {path.name for path in (base / root).glob("train/*/*.jpg")}
        for root in ("all", "same", "other", "good")
    }
    shutil.rmtree(base)
    return Campaign(sizes, of_root, results, done.stderr, done.returncode)


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory):
    """40 files of each kind of damage, read by every loader."""
    return read_all(tmp_path_factory.mktemp("damaged"), 40, 0, SIZE, 300)


def check_process(campaign):
    assert campaign.code == 0, campaign.stderr[-2000:]
    assert "Traceback" not in campaign.stderr
    # No pass waits for anything, and no file makes a loader take memory for what is not there.
    results = list(campaign.results.values())
    assert all(result["left"] == 0 for result in results)
    clean = max(result["peak"] for result in results if result["job"][0] == "good")
    assert results[-1]["peak"] < clean + 300


def check_skipped(campaign, loader, workers):
    """A pass comes to its end without the unreadable images, all of them counted, none other."""
    root = "same" if loader == "device" else "all"
    result, unreadable = campaign.results[root, loader, workers, "skip"], campaign.unreadable(root)
    assert result["error"] is None
    assert sorted(result["corrupt"]) == unreadable
    total = len(campaign.of_root[root])
    if loader.endswith("-eval"):
        assert sum(result["sizes"]) == total - len(unreadable)
    else:
        assert result["sizes"] == [BATCH] * (total // BATCH)
        assert set(result["seen"]) == campaign.of_root[root] - set(unreadable)


def check_named(campaign, loader, workers):
    root = "same" if loader == "device" else "all"
    result, unreadable = campaign.results[root, loader, workers, "error"], campaign.unreadable(root)
    error = result["error"]
    assert error.startswith("cannot read an image: ") and "on_corrupt=skip" in error
    assert any(name in error for name in unreadable)
    assert "\n" not in error


def check_sizes_named(campaign):
    """What a broken header leaves readable at another size does not fit into one array."""
    (name,) = {each for each in campaign.of_root["other"] if campaign.sizes[each] != SIZE}
    for on_corrupt in ("skip", "error"):
        error = campaign.results["other", "device", 0, on_corrupt]["error"]
        assert error.startswith("images differ in size: ") and name in error


def test_the_damage_is_worth_its_name(two_hundred):
    names = [name for name in two_hundred.of_root["all"] if not name.startswith(("good", "more"))]
    assert len(names) == 200
    for damage in DAMAGE:
        own = [two_hundred.sizes[name] for name in names if name.startswith(damage.__name__)]
        assert len(own) == 40 and own.count(None) >= 15
    assert all(two_hundred.sizes[name] == SIZE for name in two_hundred.of_root["good"])


def test_no_crash_no_hang_no_worker_left_no_memory_taken(two_hundred):
    check_process(two_hundred)


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_damaged_images_are_skipped_and_counted(two_hundred, loader, workers):
    check_skipped(two_hundred, loader, workers)


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_a_damaged_image_is_named(two_hundred, loader, workers):
    check_named(two_hundred, loader, workers)


def test_the_device_loader_names_an_image_whose_header_lies(two_hundred):
    check_sizes_named(two_hundred)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("seed", "size"), [(1, SIZE), (2, None)])
def test_a_thousand_damaged_images(tmp_path, seed, size):
    loaders = [*LOADERS, BY_FORKSERVER]
    campaign = read_all(tmp_path / "set", 200, seed, size, 1500, loaders)
    check_process(campaign)
    for loader, workers in loaders:
        if size is None and loader == "device":
            continue  # takes one size alone
        check_skipped(campaign, loader, workers)
        check_named(campaign, loader, workers)
    check_sizes_named(campaign)
    unreadable = len(campaign.unreadable("all"))
    peak = max(result["peak"] for result in campaign.results.values())
    print(f"1000 damaged, {unreadable} unreadable, peak {peak:.0f} MiB")
