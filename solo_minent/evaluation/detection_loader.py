"""Batches for detectors: which images a step sees is a function of the seed and the step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from solo_minent.data.images import open_image
from solo_minent.errors import UserError
from solo_minent.evaluation.detection_data import AnnotatedImage, DetectionData


class DetectionImages(Dataset):
    """Images and targets as torchvision's detectors take them.

    Item `(i, flip)`, or `i` alone, gives the image, float32 (3, H, W) in [0, 1], and its target:
    boxes (n, 4) float32 x1, y1, x2, y2 in pixels, labels (n,) int64, masks (n, H, W) uint8 if asked
    for, and for a test iscrowd (n,) and area (n,). An image that cannot be used gives a UserError
    instead, as an item.

    Args:
        data: the split.
        training: images without an object to train on are left out, and such objects too.
        masks: give them.
    """

    def __init__(self, data: DetectionData, training: bool, masks: bool) -> None:
        self.training, self.masks = training, masks
        self.images = data.images
        self.drop_ignored = training and not data.train_on_ignored
        if training:
            self.images = [image for image in data.images if self._kept(image).any()]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, bool]) -> tuple[Tensor, dict] | UserError:
        index, flip = item if isinstance(item, tuple) else (item, False)
        try:
            return self._sample(self.images[index], flip)
        except UserError as error:
            return error

    def _kept(self, image: AnnotatedImage) -> np.ndarray:
        return ~(image.ignored & self.drop_ignored)

    def _sample(self, annotated: AnnotatedImage, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        image = _read_rgb(annotated)
        kept = self._kept(annotated)
        boxes = torch.from_numpy(annotated.boxes[kept])
        target = {"labels": torch.from_numpy(annotated.labels[kept])}
        if self.masks:
            target["masks"] = _masks(annotated, kept)
        if flip:
            image = image.flip(-1)
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([annotated.width - x2, y1, annotated.width - x1, y2], dim=1)
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        target["boxes"] = boxes
        if not self.training:
            target["iscrowd"] = torch.from_numpy(annotated.ignored[kept]).long()
            target["area"] = torch.from_numpy(annotated.areas[kept])
        return image, target


def _read_rgb(annotated: AnnotatedImage) -> Tensor:
    from PIL import Image

    try:
        with open_image(annotated.path.read_bytes()) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image cannot be decoded: {annotated.path} ({type(error).__name__}). Every annotated "
            "image must be readable. Restore the file."
        ) from error
    if pixels.shape[:2] != (annotated.height, annotated.width):
        raise UserError(
            f"image has another size than annotated: {annotated.path} is {pixels.shape[1]} x "
            f"{pixels.shape[0]}, annotated {annotated.width} x {annotated.height}. Boxes are in "
            "pixels of the image. Restore the image, or correct the annotation."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def _masks(annotated: AnnotatedImage, kept: np.ndarray) -> Tensor:
    from pycocotools import mask as coco

    height, width = annotated.height, annotated.width
    masks = torch.zeros(int(kept.sum()), height, width, dtype=torch.uint8)
    for row, index in enumerate(np.flatnonzero(kept)):
        segment = annotated.segments[index]
        try:
            if isinstance(segment, list):
                lengths = coco.merge(coco.frPyObjects(segment, height, width))
            elif isinstance(segment["counts"], list):
                lengths = coco.frPyObjects(segment, height, width)
            else:
                lengths = segment
            masks[row] = torch.from_numpy(coco.decode(lengths))
        except Exception as error:  # the type that pycocotools raises
            raise UserError(
                f"segmentation cannot be decoded: object {index + 1} of {annotated.path} "
                f"({type(error).__name__}). It is polygons or run lengths of the image's size. "
                "Correct the annotations, or set evaluation.detect.mask=false."
            ) from error
    return masks


def step_batches(
    images: int, batch_size: int, first: int, last: int, seed: int
) -> list[list[tuple[int, bool]]]:
    """The images of the steps first … last - 1, each with whether it is mirrored.

    Seeded permutations of all images, one behind the other without a gap: what a step sees does
    not depend on where the training was interrupted.

    Args:
        images: their number.
        batch_size: images of a step.
        first, last: steps, counted from 0.
        seed: of the run.
    """
    stream: list[tuple[int, bool]] = []
    start, stop = first * batch_size, last * batch_size
    for epoch in range(start // images, (stop - 1) // images + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(images, generator=generator).tolist()
        flips = (torch.rand(images, generator=generator) < 0.5).tolist()
        stream += zip(order, flips, strict=True)
    offset = start // images * images
    return [
        stream[step * batch_size - offset : (step + 1) * batch_size - offset]
        for step in range(first, last)
    ]


def collate(samples: list) -> tuple[list[Tensor], list[dict[str, Tensor]]] | UserError:
    """A batch as two lists; the first error where an image could not be used."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def detection_loader(images: DetectionImages, batches: list, num_workers: int) -> DataLoader:
    """Batches of the given items, in the given order."""
    return DataLoader(images, batch_sampler=batches, num_workers=num_workers, collate_fn=collate)
