"""COCO- and VOC-format sets: what they are read as, and what is refused before any training."""

import json

import numpy as np
import pytest

from solo_minent.errors import UserError
from solo_minent.evaluation.detection_data import coco_data, detection_data, voc_data


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def coco(root, split="train", **options):
    return coco_data(root / f"annotations/instances_{split}.json", root / split, **options)


def test_coco(tiny_coco):
    train, test = detection_data(tiny_coco)
    assert (train.classes, len(train.images), len(test.images)) == (["disc", "square"], 8, 4)
    assert train.masks and not train.train_on_ignored and train.name == tiny_coco.name
    raw = json.loads((tiny_coco / "annotations/instances_train.json").read_text())
    first = [entry for entry in raw["annotations"] if entry["image_id"] == raw["images"][0]["id"]]
    image = train.images[0]
    x, y, w, h = np.array([entry["bbox"] for entry in first]).T
    assert np.allclose(image.boxes, np.stack([x, y, x + w, y + h], axis=1))
    assert image.labels.tolist() == [{5: 1, 9: 2}[entry["category_id"]] for entry in first]
    assert (image.width, image.height) == (64, 48)


def test_voc(tiny_voc):
    train, test = detection_data(tiny_voc)
    assert (train.name, train.classes) == ("voc07+12", ["disc", "square"])
    assert (len(train.images), len(test.images)) == (8, 3)
    assert train.train_on_ignored and not train.masks
    # The tree's first object spans pixels 1 … 20 and 1 … 10, counted from 1.
    assert train.images[0].boxes[0].tolist() == [0, 0, 20, 10]
    assert train.images[0].ignored[:2].tolist() == [False, True]


def test_crowds_and_run_lengths(tiny_coco):
    def edit(content):
        entry = content["annotations"][0]
        entry["iscrowd"], entry["segmentation"] = 1, {"size": [48, 64], "counts": [0, 48 * 64]}

    change(tiny_coco / "annotations/instances_train.json", edit)
    data = coco(tiny_coco)
    assert data.masks and data.images[0].ignored[0]


def test_a_few_wrong_boxes_are_left_out_and_counted(tiny_coco):
    def edit(content):
        entry = content["annotations"][0]
        more = [{**entry, "id": 1000 + i} for i in range(1500)]
        content["annotations"] += [{**entry, "id": 999, "bbox": [3, 3, 0, 5]}, *more]

    before = sum(len(image.boxes) for image in coco(tiny_coco).images)
    change(tiny_coco / "annotations/instances_train.json", edit)
    data = coco(tiny_coco)
    assert data.left_out == 1
    assert sum(len(image.boxes) for image in data.images) == before + 1500


def test_a_box_is_cut_at_the_border_of_its_image(tiny_coco):
    change(
        tiny_coco / "annotations/instances_train.json",
        lambda content: content["annotations"][0].update(bbox=[-0.5, 0, 64.9, 48.7]),
    )
    assert coco(tiny_coco).images[0].boxes[0].tolist() == [0, 0, 64, 48]


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([3, 3, 0, 5], "has no area: .*annotation 1,"),
        ([3, 3, -2, 5], "has no area: .*annotation 1,"),
        ([3, 3, 90, 5], "leaves its image of 64 x 48: corners 3, 3, 93, 8, annotation 1,"),
        ([-9, 3, 12, 5], "leaves its image"),
        ([float("nan"), 3, 9, 5], "is not four finite numbers"),
        ([3, 3, 9], "malformed.*instances_train.json.*'id': 1,"),
        (["x", 3, 9, 4], "malformed"),
    ],
)
def test_wrong_boxes(tiny_coco, bbox, message):
    change(
        tiny_coco / "annotations/instances_train.json",
        lambda content: content["annotations"][0].update(bbox=bbox),
    )
    with pytest.raises(UserError, match=message):
        coco(tiny_coco)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("category_id", 77, "class of an object is unknown: 77, annotation 1"),
        ("image_id", 77, "image of an annotation is unknown: 77, annotation 1"),
        ("segmentation", [[1, 2, 3, 4]], "polygon is not three or more points"),
    ],
)
def test_wrong_annotations(tiny_coco, key, value, message):
    change(
        tiny_coco / "annotations/instances_train.json",
        lambda content: content["annotations"][0].update({key: value}),
    )
    with pytest.raises(UserError, match=message):
        coco(tiny_coco)


def test_a_class_that_only_the_test_has(tiny_coco):
    change(
        tiny_coco / "annotations/instances_val.json",
        lambda content: content["categories"][0].update(name="star"),
    )
    with pytest.raises(UserError, match="class of an object is unknown: star.*disc, square"):
        detection_data(tiny_coco)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": [], "annotations": [{}]}'])
def test_files_that_are_no_annotations(tiny_coco, text):
    path = tiny_coco / "annotations/instances_train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"annotations are malformed: {path}"):
        coco(tiny_coco)


def test_empty_lists_are_malformed(tiny_coco):
    path = tiny_coco / "annotations/instances_train.json"
    change(path, lambda content: content["annotations"].clear())
    with pytest.raises(UserError, match="malformed.*8 images, 0 annotations"):
        coco(tiny_coco)


def test_an_image_that_is_not_there(tiny_coco):
    gone = next((tiny_coco / "train").iterdir())
    gone.unlink()
    with pytest.raises(UserError, match=rf"image file is missing: {gone} \(1 of 8"):
        coco(tiny_coco)


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(UserError, match="no annotated images.*VOCdevkit"):
        detection_data(tmp_path)


def test_a_test_file_that_is_not_there(tiny_coco):
    (tiny_coco / "annotations/instances_val.json").unlink()
    with pytest.raises(UserError, match="annotations cannot be read: .*instances_val.json"):
        detection_data(tiny_coco)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>20</xmax>", "<xmax>0</xmax>", "has no area: .*object 1 of .*xml"),
        ("<xmax>20</xmax>", "<xmax>80</xmax>", "leaves its image of 64 x 48"),
        ("<xmax>20</xmax>", "", "malformed: .*xml"),
        ("<width>64</width>", "<width></width>", "malformed: .*xml"),
        ("</annotation>", "", "malformed: .*xml .ParseError"),
    ],
)
def test_wrong_voc_files(tiny_voc, old, new, message):
    path = tiny_voc / "VOCdevkit/VOC2007/Annotations/000001.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        detection_data(tiny_voc)


def test_a_voc_class_that_is_unknown(tiny_voc):
    with pytest.raises(UserError, match="class of an object is unknown: disc.*object"):
        voc_data(tiny_voc / "VOCdevkit", [("VOC2007", "test")], classes=["square"])


def test_voc_lists(tiny_voc):
    base = tiny_voc / "VOCdevkit/VOC2007"
    (base / "JPEGImages/000001.jpg").unlink()
    with pytest.raises(UserError, match="image file is missing: .*000001.jpg"):
        detection_data(tiny_voc)
    (base / "Annotations/000002.xml").unlink()
    with pytest.raises(UserError, match="annotations cannot be read: .*000002.xml"):
        detection_data(tiny_voc)
    (base / "ImageSets/Main/trainval.txt").write_text("\n")
    with pytest.raises(UserError, match="malformed: .*trainval.txt .no names"):
        detection_data(tiny_voc)


def test_entities_are_not_followed(tiny_voc, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("disc")
    path = tiny_voc / "VOCdevkit/VOC2007/Annotations/000001.xml"
    head = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{secret}">]>'
    path.write_text(head + path.read_text().replace("<name>square", "<name>&e;"))
    with pytest.raises(UserError, match="malformed: .*000001.xml"):
        detection_data(tiny_voc)
