"""Average precision: a case worked out by hand, and pycocotools itself on random ones."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solo_minent.evaluation.detection_metrics import DetectionMetrics, voc_average_precision


def objects(boxes, labels=None, crowd=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(labels or [1] * len(boxes), dtype=torch.int64)
    crowd = torch.tensor(crowd or [0] * len(boxes), dtype=torch.int64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return {"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": area}


def detections(boxes, scores, labels=None):
    found = objects(boxes, labels)
    scores = torch.tensor(scores, dtype=torch.float32)
    return {"boxes": found["boxes"], "labels": found["labels"], "scores": scores}


# Two objects; right at IoU 1, wrong, right at IoU .62: precision 1 to recall 1/2, then 2/3 or 0.
OBJECTS = objects([[0, 0, 100, 100], [200, 0, 300, 100]])
FOUND = detections([[0, 0, 100, 100], [0, 200, 99, 300], [200, 0, 300, 62]], [0.9, 0.8, 0.7])


def test_by_hand():
    metrics = DetectionMetrics(masks=False, voc=True)
    metrics.update([FOUND], [OBJECTS])
    result = metrics.compute()
    at50, at75 = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result["ap50"] == pytest.approx(100 * at50)
    assert result["ap75"] == pytest.approx(100 * at75)
    assert result["ap"] == pytest.approx(100 * (3 * at50 + 7 * at75) / 10)
    at50, at75 = (6 + 5 * 2 / 3) / 11, 6 / 11
    assert result["voc_ap50"] == pytest.approx(100 * at50)
    assert result["voc_ap75"] == pytest.approx(100 * at75)
    assert result["voc_ap"] == pytest.approx(100 * (3 * at50 + 7 * at75) / 10)
    assert result["ap_large"] == result["ap"]
    assert "ap_small" not in result and "mask_ap" not in result


def as_numpy(one):
    return {key: value.numpy() for key, value in one.items()}


def test_voc_counts_a_second_detection_as_wrong_and_a_difficult_object_not_at_all():
    target = objects([[0, 0, 10, 10], [20, 0, 30, 10]], crowd=[0, 1])
    # The difficult one twice, then the other one twice.
    found = detections(
        [[20, 0, 30, 10], [20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8, 0.7, 0.6]
    )
    assert np.all(voc_average_precision([(as_numpy(found), as_numpy(target))]) == 1)
    # With the wrong one first, the precision at every recall is 1/2.
    found["boxes"][2] = torch.tensor([50.0, 50, 60, 60])
    assert np.allclose(voc_average_precision([(as_numpy(found), as_numpy(target))]), 0.5)
    doubled = detections([[0, 0, 10, 10]] * 3 + [[40, 0, 50, 10]], [0.9, 0.8, 0.7, 0.6])
    two = objects([[0, 0, 10, 10], [40, 0, 50, 10]])
    expected = (6 * 1 + 5 * 0.5) / 11
    assert np.allclose(voc_average_precision([(as_numpy(doubled), as_numpy(two))]), expected)


def test_voc_averages_over_the_classes_that_have_objects():
    target = objects([[0, 0, 10, 10], [20, 0, 30, 10]], labels=[1, 3], crowd=[0, 0])
    found = detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], labels=[1, 2])
    table = voc_average_precision([(as_numpy(found), as_numpy(target))])
    assert table.shape == (2, 10)
    assert np.all(table[0] == 1) and np.all(table[1] == 0)


def random_case(seed, images=6, size=64):
    """Objects, and detections that are the objects jittered, with masks of the boxes."""
    rng = np.random.default_rng(seed)
    found, targets = [], []
    for _ in range(images):
        count = int(rng.integers(0, 5))
        low = rng.uniform(0, 36, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(6, 28, (count, 2))], axis=1).round(1)
        target = objects(boxes.tolist(), rng.integers(1, 4, count).tolist())
        target["iscrowd"] = torch.tensor(rng.integers(0, 6, count) == 0).long()
        jitter = torch.tensor(rng.normal(0, 2, (2 * count, 4)), dtype=torch.float32)
        moved = (target["boxes"].repeat(2, 1) + jitter).clamp(0, size)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        labels = target["labels"].repeat(2)
        swapped = torch.tensor(rng.random(2 * count) < 0.2)
        labels = torch.where(swapped, labels % 3 + 1, labels)
        scores = torch.tensor(rng.random(2 * count), dtype=torch.float32)
        one = {"boxes": moved, "labels": labels, "scores": scores}
        one["masks"] = box_masks(moved, size)[:, None].float()
        target["masks"] = box_masks(target["boxes"], size)
        found.append(one)
        targets.append(target)
    return found, targets


def box_masks(boxes, size):
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def pycocotools_ap(found, targets, kind):
    """AP, AP50 and AP75 by pycocotools, from dictionaries of its own format."""

    def entries(images, detected):
        result = []
        for image_id, image in enumerate(images):
            masks = image["masks"][:, 0] >= 0.5 if detected else image["masks"].bool()
            for row, box in enumerate(image["boxes"].tolist()):
                x1, y1, x2, y2 = box
                segment = coco_mask.encode(np.asfortranarray(masks[row].numpy().astype(np.uint8)))
                entry = {"id": len(result) + 1, "image_id": image_id}
                entry |= {"category_id": int(image["labels"][row]), "segmentation": segment}
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                if detected:
                    entry["score"] = float(image["scores"][row])
                    entry["area"] = (x2 - x1) * (y2 - y1)
                    entry["iscrowd"] = 0
                else:
                    entry["area"] = float(image["area"][row])
                    entry["iscrowd"] = int(image["iscrowd"][row])
                result.append(entry)
        return result

    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for images, detected in ((targets, False), (found, True)):
            data = COCO()
            data.dataset = {
                "images": [
                    {"id": index, "width": 64, "height": 64} for index in range(len(images))
                ],
                "annotations": entries(images, detected),
                "categories": [{"id": label} for label in (1, 2, 3)],
            }
            data.createIndex()
            sets.append(data)
        evaluation = COCOeval(*sets, iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(3))
def test_as_pycocotools(seed):
    found, targets = random_case(seed)
    metrics = DetectionMetrics(masks=True, voc=False)
    for one, target in zip(found, targets, strict=True):
        metrics.update([one], [target])
    result = metrics.compute()
    boxes = [result["ap"], result["ap50"], result["ap75"]]
    masks = [result["mask_ap"], result["mask_ap50"], result["mask_ap75"]]
    assert 0 < boxes[0] < 100
    assert boxes == pytest.approx(pycocotools_ap(found, targets, "bbox"))
    assert masks == pytest.approx(pycocotools_ap(found, targets, "segm"))
