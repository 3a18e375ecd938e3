"""Average precision of detections: COCO's by pycocotools, and PASCAL VOC 2007's.

Both are means over the IoU thresholds .5, .55, … .95 and the classes. COCO's takes the area under
the precision envelope at 101 recalls and at most 100 detections an image; VOC 2007's the mean
precision at 11 recalls, as detectron2 does for the numbers that papers give on VOC07+12. VOC's
difficult objects have no equal in COCO's: they stand for crowds there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = np.arange(50, 100, 5) / 100


class DetectionMetrics:
    """Collects detections and objects of a test set, image by image.

    Args:
        masks: of masks as well as of boxes.
        voc: VOC's numbers as well as COCO's.
    """

    def __init__(self, masks: bool, voc: bool) -> None:
        from torchmetrics.detection import MeanAveragePrecision

        self.masks, self.voc = masks, voc
        types = ("bbox", "segm") if masks else "bbox"
        self.coco = MeanAveragePrecision(
            iou_type=types,
            # COCO's own; torchmetrics' are rounded to float32, where a recall of 3/5 misses .6.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            backend="pycocotools",
            sync_on_compute=False,  # one process tests, the others have left
        )
        self.images: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def update(self, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Adds images.

        Args:
            found: boxes (n, 4), scores (n,), labels (n,) and masks (n, 1, H, W) of probabilities.
            targets: boxes, labels, iscrowd, area and masks (n, H, W).
        """
        if self.masks:
            found = [{**one, "masks": one["masks"][:, 0] >= 0.5} for one in found]
            targets = [{**one, "masks": one["masks"].bool()} for one in targets]
        found = [{key: value.detach().cpu() for key, value in one.items()} for one in found]
        self.coco.update(found, targets)
        if self.voc:
            kept = ("boxes", "scores", "labels", "iscrowd")
            for one, target in zip(found, targets, strict=True):
                pair = ({k: d[k].numpy() for k in kept if k in d} for d in (one, target))
                self.images.append(tuple(pair))

    def compute(self) -> dict[str, float]:
        """ap, ap50, ap75, ap_small, ap_medium and ap_large, the same of masks as mask_ap…, in %.

        A size that no object has is left out. With `voc` also voc_ap, voc_ap50 and voc_ap75.
        """
        result: dict[str, Any] = self.coco.compute()
        parts = {"bbox_": "", "segm_": "mask_"} if self.masks else {"": ""}
        metrics = {}
        for theirs, ours in parts.items():
            for suffix in ("", "_50", "_75", "_small", "_medium", "_large"):
                value = 100 * result[f"{theirs}map{suffix}"].item()
                name = suffix if suffix.strip("_").isalpha() else suffix.replace("_", "")
                if value >= 0:
                    metrics[f"{ours}ap{name}"] = value
        if self.voc:
            table = 100 * voc_average_precision(self.images)
            mean = table.mean(axis=0)
            metrics |= {"voc_ap": float(mean.mean()), "voc_ap50": float(mean[0])}
            metrics["voc_ap75"] = float(mean[5])
        return metrics


def voc_average_precision(
    images: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
) -> np.ndarray:
    """VOC 2007's average precision of each class at each of `THRESHOLDS`: (classes, 10) in [0, 1].

    By falling score, a detection is right if the object that it overlaps most overlaps by more than
    the threshold and was not found before; on a difficult object it does not count. Classes are
    those that have an object which is not difficult.

    Args:
        images: of each, the detections (boxes, scores, labels) and the objects (boxes, labels,
            iscrowd: the difficult ones).
    """
    easy = [target["labels"][target["iscrowd"] == 0] for _, target in images]
    classes = np.unique(np.concatenate(easy))
    return np.array([_class_precision(images, label) for label in classes])


def _class_precision(images: list, label: int) -> list[float]:
    scores, overlaps, nearest, difficult, objects = [], [], [], [], 0
    offset = 0
    for found, target in images:
        rows, columns = found["labels"] == label, target["labels"] == label
        hard = target["iscrowd"][columns].astype(bool)
        objects += int((~hard).sum())
        scores.append(found["scores"][rows])
        iou = _iou(found["boxes"][rows], target["boxes"][columns])
        if iou.shape[1]:
            overlaps.append(iou.max(axis=1))
            nearest.append(iou.argmax(axis=1) + offset)
        else:
            overlaps.append(np.zeros(len(iou)))
            nearest.append(np.zeros(len(iou), dtype=np.int64) - 1)
        difficult.append(hard)
        offset += len(hard)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    overlap, index = np.concatenate(overlaps)[order], np.concatenate(nearest)[order]
    hard = np.concatenate(difficult)
    return [_eleven_points(overlap > t, index, hard, objects) for t in THRESHOLDS]


def _eleven_points(hit: np.ndarray, index: np.ndarray, hard: np.ndarray, objects: int) -> float:
    on_hard = hit & np.append(hard, False)[index]
    first = np.zeros(len(hit), dtype=bool)
    hits = np.flatnonzero(hit & ~on_hard)
    _, earliest = np.unique(index[hits], return_index=True)
    first[hits[earliest]] = True
    right = np.cumsum(first)
    wrong = np.cumsum(~first & ~on_hard)
    precision = right / np.maximum(right + wrong, 1)
    # In whole numbers, as 3 of 10 reaches the recall of 0.3.
    reached = [10 * right >= level * objects for level in range(11)]
    return float(np.mean([precision[enough].max(initial=0) for enough in reached]))


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) corners -> (n, m)."""
    from torchvision.ops import box_iou

    return box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
