"""Targets of images, mirrored and not, and the order in which steps see them."""

import json

import numpy as np
import pytest
import torch

from solo_minent.errors import UserError
from solo_minent.evaluation.detection_data import coco_data, detection_data
from solo_minent.evaluation.detection_loader import DetectionImages, step_batches


def read(root, edit=None):
    path = root / "annotations/instances_train.json"
    if edit:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    return coco_data(path, root / "train")


def test_a_mirrored_image_with_its_boxes_and_masks(tiny_coco):
    images = DetectionImages(read(tiny_coco), training=True, masks=True)
    image, target = images[2, False]
    mirrored, other = images[2, True]
    assert image.dtype == torch.float32 and image.shape == (3, 48, 64) and image.max() <= 1
    assert torch.equal(mirrored, image.flip(-1)) and torch.equal(other["labels"], target["labels"])
    for box, mask in zip(other["boxes"].int().tolist(), other["masks"], strict=True):
        x1, y1, x2, y2 = box
        assert mask[y1:y2, x1:x2].all() and mask.sum() == (x2 - x1) * (y2 - y1)
    # The square's red and the disc's green are in their boxes.
    for label, box in zip(other["labels"].tolist(), other["boxes"].int().tolist(), strict=True):
        centre = mirrored[:, (box[1] + box[3]) // 2, (box[0] + box[2]) // 2]
        assert centre.argmax() == {1: 1, 2: 0}[label]


def test_masks_of_run_lengths(tiny_coco):
    from pycocotools import mask as coco

    wanted = np.zeros((48, 64), dtype=np.uint8)
    wanted[10:20, 30:33] = 1
    packed = coco.encode(np.asfortranarray(wanted))
    counts = [30 * 48 + 10, 10, 38, 10, 38, 10, 28 + 31 * 48]

    def edit(content):
        first, second = content["annotations"][:2]
        first["segmentation"] = {"size": [48, 64], "counts": counts}
        second["segmentation"] = {"size": [48, 64], "counts": packed["counts"].decode()}

    _, target = DetectionImages(read(tiny_coco, edit), training=True, masks=True)[0]
    assert torch.equal(target["masks"], torch.from_numpy(np.stack([wanted, wanted])))


def test_a_mask_that_is_none_is_named(tiny_coco):
    def edit(content):
        content["annotations"][1]["segmentation"] = {"size": [10, 10], "counts": [50, 50]}

    images = DetectionImages(read(tiny_coco, edit), training=True, masks=True)
    error = images[0]
    assert isinstance(error, UserError)
    assert "segmentation cannot be decoded: object 2 of" in str(error)


def test_crowds_are_tested_on_and_not_trained_on(tiny_coco):
    def edit(content):
        for entry in content["annotations"][:3]:
            entry["iscrowd"] = 1

    data = read(tiny_coco, edit)
    training = DetectionImages(data, training=True, masks=False)
    assert len(training) == 7  # the first image has crowds alone
    assert len(training[0][1]["labels"]) == 1
    test = DetectionImages(data, training=False, masks=False)
    assert len(test) == 8
    assert test[0][1]["iscrowd"].tolist() == [1, 1] and "iscrowd" not in training[0][1]


def test_difficult_objects_are_trained_on(tiny_voc):
    train, _ = detection_data(tiny_voc)
    assert len(DetectionImages(train, training=True, masks=False)[0][1]["labels"]) == 2


@pytest.mark.parametrize(("images", "size"), [(10, 4), (3, 8), (8, 2)])
def test_steps_do_not_depend_on_where_they_were_interrupted(images, size):
    whole = step_batches(images, size, 0, 30, seed=3)
    parts = step_batches(images, size, 0, 11, 3) + step_batches(images, size, 11, 30, 3)
    assert parts == whole
    assert all(len(batch) == size for batch in whole)
    stream = [index for batch in whole for index, _ in batch]
    for start in range(0, len(stream) - images, images):
        assert sorted(stream[start : start + images]) == list(range(images))
    assert step_batches(images, size, 0, 30, seed=4) != whole
    flips = [flip for batch in whole for _, flip in batch]
    assert 0.3 < np.mean(flips) < 0.7
