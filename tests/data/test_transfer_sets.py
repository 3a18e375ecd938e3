"""Transfer sets: each layout of torchvision's, written small, read into the field's splits."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from solo_minent.data import transfer_sets
from solo_minent.data.images import CorruptImageError
from solo_minent.data.transfer_known import TRANSFER_SETS
from solo_minent.data.transfer_sets import VOC_CLASSES, transfer_set
from solo_minent.errors import UserError


def jpeg(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (shade, shade, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()


def put(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def put_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# Each builder writes a tree below `root` and says what must come out: for each split the file names
# and the class of each.


def build_dtd(root: Path, patch) -> dict:
    want = {
        "train": [
            ("banded_1.jpg", "banded"),
            ("dotted_4.jpg", "dotted"),
            ("dotted_2.jpg", "dotted"),
        ],
        "val": [("dotted_9.jpg", "dotted"), ("banded_7.jpg", "banded")],
        "test": [("banded_5.jpg", "banded"), ("dotted_6.jpg", "dotted")],
    }
    for split, rows in want.items():
        names = [f"{label}/{name}" for name, label in rows]
        put(root / "dtd/dtd/images", names)
        put_lines(root / f"dtd/dtd/labels/{split}1.txt", names)
    return want


def build_flowers102(root: Path, patch) -> dict:
    base = root / "flowers-102"
    labels = [2, 1, 2, 1, 2, 1, 1]
    ids = {"trnid": [1, 2], "valid": [4, 3], "tstid": [5, 6, 7]}
    put(base / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 8)])
    savemat(base / "imagelabels.mat", {"labels": np.array([labels])})
    savemat(base / "setid.mat", {key: np.array([value]) for key, value in ids.items()})
    md5s = {  # of the real files, which torchvision checks
        key: (name, calculate_md5(base / name) if name.endswith("mat") else md5)
        for key, (name, md5) in datasets.Flowers102._file_dict.items()
    }
    patch.setattr(datasets.Flowers102, "_file_dict", md5s)
    name = {1: "pink primrose", 2: "hard-leaved pocket orchid"}
    splits = zip(("train", "val", "test"), ids.values(), strict=True)
    return {
        split: [(f"image_{i:05d}.jpg", name[labels[i - 1]]) for i in members]
        for split, members in splits
    }


def build_pets(root: Path, patch) -> dict:
    base = root / "oxford-iiit-pet"
    lists = {
        "trainval": ["Abyssinian_10 1 1 1", "great_pyrenees_3 2 2 1", "Abyssinian_4 1 1 1"],
        "test": ["great_pyrenees_1 2 2 1", "Abyssinian_2 1 1 1"],
    }
    title = {"1": "Abyssinian", "2": "Great Pyrenees"}
    want = {}
    for split, lines in lists.items():
        put_lines(base / f"annotations/{split}.txt", lines)
        rows = [line.split() for line in lines]
        put(base / "images", [f"{row[0]}.jpg" for row in rows])
        want["test" if split == "test" else "train"] = [
            (f"{row[0]}.jpg", title[row[1]]) for row in rows
        ]
    return want


def build_food101(root: Path, patch) -> dict:
    base = root / "food-101"
    lists = {
        "train": {"sushi": ["sushi/2", "sushi/1"], "apple_pie": ["apple_pie/7"]},
        "test": {"apple_pie": ["apple_pie/8"], "sushi": ["sushi/3"]},
    }
    want = {}
    for split, content in lists.items():
        put_lines(base / f"meta/{split}.json", [json.dumps(content)])
        names = [name for members in content.values() for name in members]
        put(base / "images", [f"{name}.jpg" for name in names])
        want[split] = [(f"{n.split('/')[1]}.jpg", n.split("/")[0]) for n in names]
    return want


def build_aircraft(root: Path, patch) -> dict:
    data = root / "fgvc-aircraft-2013b/data"
    want = {
        "train": [("0034.jpg", "A300B4"), ("0035.jpg", "Boeing 717")],
        "val": [("0036.jpg", "Boeing 717")],
        "test": [("0037.jpg", "A300B4"), ("0038.jpg", "A300B4")],
    }
    put_lines(data / "variants.txt", ["A300B4", "Boeing 717"])
    for split, rows in want.items():
        put(data / "images", [name for name, _ in rows])
        lines = [f"{name.removesuffix('.jpg')} {label}" for name, label in rows]
        put_lines(data / f"images_variant_{split}.txt", lines)
    return want


def build_cars(root: Path, patch) -> dict:
    base = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    lists = {"train": [("00001.jpg", 2), ("00002.jpg", 1)], "test": [("00001.jpg", 1)] * 2}
    lists["test"] = [("00001.jpg", 1), ("00003.jpg", 2)]
    files = {
        "train": base / "devkit/cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    for split, rows in lists.items():
        put(base / f"cars_{split}", [name for name, _ in rows])
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        files[split].parent.mkdir(exist_ok=True)
        savemat(files[split], {"annotations": table})
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    return {split: [(n, names[c - 1]) for n, c in rows] for split, rows in lists.items()}


def build_sun397(root: Path, patch) -> dict:
    base = root / "SUN397"
    put_lines(base / "ClassName.txt", ["/a/abbey", "/a/apse/indoor"])
    lists = {
        "train": ["/a/apse/indoor/sun_b.jpg", "/a/abbey/sun_a.jpg"],
        "test": ["/a/abbey/sun_c.jpg", "/a/apse/indoor/sun_d.jpg"],
    }
    for split, name in (("train", "Training_01"), ("test", "Testing_01")):
        put(base, [line.strip("/") for line in lists[split]])
        put_lines(base / f"{name}.txt", lists[split])
    put(base, ["a/abbey/sun_of_no_list.jpg"])
    return {
        split: [(Path(n).name, "/".join(Path(n).parts[2:-1])) for n in names]
        for split, names in lists.items()
    }


def build_voc2007(root: Path, patch) -> dict:
    base = root / "VOCdevkit/VOC2007"
    ids = {"train": ["000005", "000007"], "val": ["000009"], "test": ["000001", "000002"]}
    for split, names in ids.items():
        put(base / "JPEGImages", [f"{name}.jpg" for name in names])
        put_lines(base / f"ImageSets/Main/{split}.txt", names)
        for column, label in enumerate(VOC_CLASSES):
            values = [(int(name) + column) % 3 - 1 for name in names]
            lines = [f"{name} {value:2d}" for name, value in zip(names, values, strict=True)]
            put_lines(base / f"ImageSets/Main/{label}_{split}.txt", lines)
    return {
        split: [(f"{n}.jpg", [(int(n) + column) % 3 - 1 for column in range(20)]) for n in names]
        for split, names in ids.items()
    }


LISTED = {
    "aircraft": build_aircraft,
    "cars": build_cars,
    "dtd": build_dtd,
    "flowers102": build_flowers102,
    "food101": build_food101,
    "pets": build_pets,
    "sun397": build_sun397,
    "voc2007": build_voc2007,
}


@pytest.fixture
def published(monkeypatch):
    """Makes tiny numbers the published ones of a set."""

    def set_sizes(dataset, **sizes):
        known = transfer_sets.KNOWN[dataset]
        monkeypatch.setitem(transfer_sets.KNOWN, dataset, known._replace(sizes=sizes))

    return set_sizes


@pytest.fixture
def built(tmp_path, monkeypatch, published):
    """Writes a listed set and returns what must come out of it."""

    def build(dataset):
        want = LISTED[dataset](tmp_path, monkeypatch)
        published(dataset, **{split: len(rows) for split, rows in want.items()})
        return want

    return build


def rows_of(images) -> list:
    names = images.file_names()
    if images.targets.ndim == 2:
        return list(zip(names, images.targets.tolist(), strict=True))
    return [(n, images.classes[t]) for n, t in zip(names, images.targets, strict=True)]


@pytest.mark.parametrize("dataset", LISTED)
def test_the_authors_splits(dataset, built, tmp_path):
    want = built(dataset)
    found = transfer_set(dataset, tmp_path)
    assert (found.val is not None) == ("val" in want)
    for split, rows in want.items():
        images = getattr(found, split)
        assert rows_of(images) == rows, split
        last = len(images) - 1
        image, label = images[last]
        assert image.size == (12, 10) and image.mode == "RGB"
        assert label == (last if images.targets.ndim == 2 else images.targets[last])
    assert not found.drawn


def test_every_set_has_a_layout_here():
    assert sorted([*LISTED, "caltech101", "eurosat"]) == sorted(TRANSFER_SETS)


@pytest.mark.parametrize("place", [".", "dtd", "dtd/.."])
def test_the_folder_may_be_the_sets_own(place, built, tmp_path):
    want = built("dtd")
    assert rows_of(transfer_set("dtd", tmp_path / place).train) == want["train"]


def test_a_folder_below_the_root(built, tmp_path):
    want = built("pets")
    (tmp_path / "pets").mkdir()
    shutil.move(tmp_path / "oxford-iiit-pet", tmp_path / "pets/oxford-iiit-pet")
    assert rows_of(transfer_set("pets", tmp_path).test) == want["test"]


def test_only_the_first_split_of_dtd_counts(built, tmp_path):
    want = built("dtd")
    put_lines(tmp_path / "dtd/dtd/labels/train2.txt", ["banded/banded_5.jpg"])
    assert rows_of(transfer_set("dtd", tmp_path).train) == want["train"]


@pytest.mark.parametrize("folder", [".", "Partitions", "SUN397/Partitions"])
def test_partition_1_of_sun397_wherever_it_was_unpacked(folder, built, tmp_path):
    want = built("sun397")
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("Training_01.txt", "Testing_01.txt"):
        shutil.move(tmp_path / "SUN397" / name, tmp_path / folder / name)
    assert rows_of(transfer_set("sun397", tmp_path).test) == want["test"]


def test_sun397_without_lists_is_cut_in_half(built, tmp_path, published):
    built("sun397")
    (tmp_path / "SUN397/Training_01.txt").unlink()
    published("sun397", all=5)
    found = transfer_set("sun397", tmp_path)
    assert found.drawn and "no Training_01.txt" in found.split
    assert Counter(found.train.targets.tolist()) == {0: 1, 1: 1}
    assert Counter(found.test.targets.tolist()) == {0: 2, 1: 1}


def test_a_list_of_sun397_may_not_name_what_is_not_there(built, tmp_path):
    built("sun397")
    (tmp_path / "SUN397/a/abbey/sun_c.jpg").unlink()
    with pytest.raises(UserError, match="1 images of Testing_01.txt are missing, .*sun_c.jpg"):
        transfer_set("sun397", tmp_path)


@pytest.mark.parametrize("dataset", [name for name in LISTED if name != "sun397"])
def test_a_missing_image(dataset, built, tmp_path):
    built(dataset)
    found = transfer_set(dataset, tmp_path)
    victim = Path(found.test.name_of(1))
    victim.unlink()
    with pytest.raises(UserError, match=f"{dataset} is damaged: .*1 images are missing") as error:
        transfer_set(dataset, tmp_path)
    assert str(victim) in str(error.value)


@pytest.mark.parametrize("dataset", LISTED)
def test_each_part_of_a_layout_is_asked_for(dataset, built, tmp_path):
    built(dataset)
    for part in transfer_sets.KNOWN[dataset].holds:
        hidden = (tmp_path / part).with_name("hidden")
        (tmp_path / part).rename(hidden)
        with pytest.raises(UserError, match=f"{dataset} (is not whole|not found): ") as error:
            transfer_set(dataset, tmp_path)
        assert part in str(error.value)
        hidden.rename(tmp_path / part)
    transfer_set(dataset, tmp_path)


BROKEN = {
    "aircraft": ("fgvc-aircraft-2013b/data/images_variant_val.txt", b"0036 Concorde\n"),
    "cars": ("stanford_cars/devkit/cars_train_annos.mat", b"no matrix"),
    "dtd": ("dtd/dtd/labels/val1.txt", b"a line without a class\n"),
    "flowers102": ("flowers-102/setid.mat", b"no matrix"),
    "food101": ("food-101/meta/test.json", b'{"sushi": ["sushi/3"'),
    "pets": ("oxford-iiit-pet/annotations/test.txt", b"Abyssinian_2 1\n"),
    "sun397": ("SUN397/ClassName.txt", b"/a/abbey\n"),
    "voc2007": ("VOCdevkit/VOC2007/ImageSets/Main/dog_val.txt", b"000011 1\n"),
}


@pytest.mark.parametrize("dataset", LISTED)
def test_a_broken_list_is_one_clear_error(dataset, built, tmp_path):
    built(dataset)
    path, content = BROKEN[dataset]
    (tmp_path / path).write_bytes(content)
    with pytest.raises(UserError, match=f"^{dataset} is damaged: ") as error:
        transfer_set(dataset, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_labels_of_voc_are_three(built, tmp_path):
    built("voc2007")
    path = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/dog_val.txt"
    path.write_text("000009 2\n")
    with pytest.raises(UserError, match="labels of val are not -1, 0 and 1"):
        transfer_set("voc2007", tmp_path)


def test_splits_with_other_classes(built, tmp_path):
    built("food101")
    put(tmp_path / "food-101/images", ["pho/1.jpg"])
    (tmp_path / "food-101/meta/test.json").write_text('{"sushi": ["sushi/3"], "pho": ["pho/1"]}')
    with pytest.raises(UserError, match="test has other classes than train"):
        transfer_set("food101", tmp_path)


def test_a_choice_of_a_set_is_not_the_set(built, tmp_path, published):
    built("dtd")
    published("dtd", train=1880, val=1880, test=1880)
    with pytest.raises(UserError, match="train 3, val 2, test 2. They are train 1880, .*custom"):
        transfer_set("dtd", tmp_path)


def test_a_corrupt_image_is_named(built, tmp_path):
    built("dtd")
    found = transfer_set("dtd", tmp_path)
    Path(found.train.name_of(2)).write_bytes(JPEG[:100])
    with pytest.raises(CorruptImageError, match="dotted_2.jpg"):
        found.train[2]


def test_labels_and_images_are_selected_together(built, tmp_path):
    want = built("voc2007")
    part = transfer_set("voc2007", tmp_path).train.select(np.array([1]))
    assert rows_of(part) == want["train"][1:]


def test_what_is_no_set():
    with pytest.raises(
        UserError, match="transfer set is unknown: flowers. They are aircraft, .*ers102"
    ):
        transfer_set("flowers", "anywhere")
    with pytest.raises(UserError, match="dtd needs a folder: none is set"):
        transfer_set("dtd", None)
