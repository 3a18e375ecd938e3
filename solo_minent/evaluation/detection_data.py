"""Annotated images in COCO's and in PASCAL VOC's format, checked before anything is trained.

VOC's XML is read by `xml.etree`: it opens no external entity, and expat (2.4.1 or newer) stops
entities that expand without end.
"""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo_minent.data.folders import listed_path
from solo_minent.errors import UserError

# Official COCO has a few boxes of no area: so few are left out, more mean a broken file.
FAULTY_SHARE = 1e-3
ROUNDING = 1.0  # pixels by which a box may leave its image
COCO_SPLITS = (("train2017", "val2017"), ("train2014", "val2014"), ("train", "val"))


class AnnotatedImage(NamedTuple):
    """One image and its objects.

    Attributes:
        path: image file.
        width, height: in pixels, as annotated.
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels from the upper left corner.
        labels: (n,) int64 from 1.
        ignored: (n,) bool, COCO's crowds and VOC's difficult objects: they count neither as found
            nor as missed.
        areas: (n,) float32 in pixels; COCO's small, medium and large go by it.
        segments: n segmentations, polygons (k, 2 points) or COCO's run lengths; None without masks.
    """

    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    segments: list[Any] | None = None


@dataclass(frozen=True)
class DetectionData:
    """A split of annotated images.

    Attributes:
        name: of the data set, for the result.
        classes: names; label i is `classes[i - 1]`.
        images: with their objects; an image may have none.
        masks: every object has a segmentation.
        train_on_ignored: the ignored objects are trained on (VOC's difficult ones).
        digest: SHA-256 of the annotations.
        left_out: objects that were left out for their boxes.
    """

    name: str
    classes: list[str]
    images: list[AnnotatedImage]
    masks: bool
    train_on_ignored: bool
    digest: str
    left_out: int = 0


def detection_data(root: str | Path) -> tuple[DetectionData, DetectionData]:
    """The training and the test split of a folder, COCO or VOC, whichever it is.

    COCO: `annotations/instances_train2017.json`, `instances_val2017.json`, `train2017/`, `val2017/`
    (or train2014 and val2014, or train and val). VOC: `VOCdevkit/VOC2007` and, if it is there,
    `VOC2012`; trained on the trainval lists of both, tested on test2007.

    Raises:
        UserError: it is neither, or an annotation is wrong.
    """
    root = Path(root)
    for train, test in COCO_SPLITS:
        files = [root / "annotations" / f"instances_{split}.json" for split in (train, test)]
        if files[0].is_file():
            name = root.resolve().name if train == "train" else f"coco{train[-4:]}"
            first = coco_data(files[0], root / train, name=name)
            return first, coco_data(files[1], root / test, first.classes, name)
    base = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    if (base / "VOC2007").is_dir():
        both = (base / "VOC2012").is_dir()
        name = "voc07+12" if both else "voc07"
        lists = [("VOC2007", "trainval"), *([("VOC2012", "trainval")] if both else [])]
        first = voc_data(base, lists, name=name)
        return first, voc_data(base, [("VOC2007", "test")], first.classes, name)
    raise UserError(
        f"no annotated images: {root}. COCO has annotations/instances_train2017.json and "
        "train2017/ there (or train2014, train), VOC has VOCdevkit/VOC2007. Name that folder."
    )


def coco_data(
    annotations: str | Path,
    images: str | Path,
    classes: Sequence[str] | None = None,
    name: str = "coco",
) -> DetectionData:
    """Images with COCO annotations (https://cocodataset.org/#format-data).

    Args:
        annotations: JSON file with images, annotations and categories.
        images: folder of its file names.
        classes: those of the training set, for a test set; the file's own by rising id otherwise.
        name: of the data set.

    Raises:
        UserError: the first thing that is wrong, with its annotation.
    """
    path, folder = Path(annotations), Path(images)
    text = _read(path)
    try:
        content = json.loads(text)
        entries, objects, categories = (
            content[key] for key in ("images", "annotations", "categories")
        )
        names = {entry["id"]: str(entry["name"]) for entry in categories}
        files = {entry["id"]: _file_entry(entry) for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise _malformed(path, f"{type(error).__name__} {error}") from error
    if not files or not objects:
        raise _malformed(path, f"{len(files)} images, {len(objects)} annotations")
    paths = {key: listed_path(folder, file["file_name"], path) for key, file in files.items()}
    _check_files(list(paths.values()), path)
    classes = list(classes) if classes is not None else [names[key] for key in sorted(names)]
    label_of = {key: classes.index(word) + 1 for key, word in names.items() if word in classes}
    found: dict[Any, list[_Object]] = {key: [] for key in files}
    faults = _Faults(path, len(objects))
    for entry in objects:
        try:
            where = f"annotation {entry['id']}"
            file, category = files.get(entry["image_id"]), entry["category_id"]
            if file is None:
                raise UserError(
                    f"image of an annotation is unknown: {entry['image_id']}, {where} in {path}. "
                    "The file's list of images has its id. Correct the file."
                )
            _check_class(names.get(category, category), category in label_of, where, path, classes)
            x, y, width, height = (float(number) for number in entry["bbox"])
            box = faults.checked((x, y, x + width, y + height), file, where)
            if box is not None:
                segment = _segment(entry.get("segmentation"))
                area = float(entry.get("area", width * height))
                crowd = bool(entry.get("iscrowd", 0))
                found[entry["image_id"]].append(
                    _Object(box, label_of[category], crowd, area, segment)
                )
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise _malformed(path, f"{type(error).__name__} {error} in {entry}"[:300]) from error
    masks = all(o.segment is not None for objects in found.values() for o in objects)
    samples = [_annotated(paths[key], files[key], objects, masks) for key, objects in found.items()]
    digest = hashlib.sha256(text).hexdigest()
    return DetectionData(name, classes, samples, masks, False, digest, faults.count)


def voc_data(
    root: str | Path,
    lists: Sequence[tuple[str, str]],
    classes: Sequence[str] | None = None,
    name: str = "voc",
) -> DetectionData:
    """Images with PASCAL VOC annotations, `<year>/{Annotations,ImageSets/Main,JPEGImages}`.

    Corners are pixels counted from 1, both included: x1 and y1 are moved by one, so that a box from
    1 to W covers the image.

    Args:
        root: the VOCdevkit folder.
        lists: `[("VOC2007", "trainval"), …]`.
        classes: those of the training set, for a test set; all that occur, sorted, otherwise.
        name: of the data set.

    Raises:
        UserError: the first thing that is wrong, with its file.
    """
    parsed, digest = [], hashlib.sha256()
    for year, split in lists:
        listed = Path(root) / year / "ImageSets" / "Main" / f"{split}.txt"
        words = _read(listed).decode("utf-8", "surrogateescape").split()
        if not words:
            raise _malformed(listed, "no names")
        for word in words:
            path = listed_path(Path(root) / year / "Annotations", f"{word}.xml", listed)
            text = _read(path)
            digest.update(text)
            parsed.append(
                (path, Path(root) / year / "JPEGImages" / f"{word}.jpg", _voc(path, text))
            )
    _check_files([image for _, image, _ in parsed], Path(root))
    if classes is None:
        classes = sorted({word for _, _, (_, objects) in parsed for word, _, _ in objects})
    classes = list(classes)
    if not classes:
        raise _malformed(Path(root), f"no objects in {', '.join('/'.join(pair) for pair in lists)}")
    faults = _Faults(Path(root), sum(len(objects) for _, _, (_, objects) in parsed))
    samples = []
    for path, image, (size, objects) in parsed:
        kept = []
        for number, (word, corners, difficult) in enumerate(objects, start=1):
            where = f"object {number} of {path}"
            _check_class(word, word in classes, where, path, classes)
            box = faults.checked(corners, size, where)
            if box is not None:
                area = (box[2] - box[0]) * (box[3] - box[1])
                kept.append(_Object(box, classes.index(word) + 1, difficult, area, None))
        samples.append(_annotated(image, size, kept, masks=False))
    return DetectionData(name, classes, samples, False, True, digest.hexdigest(), faults.count)


def _file_entry(entry: dict[str, Any]) -> dict[str, Any]:
    size = {key: int(entry[key]) for key in ("width", "height")}
    return {"file_name": str(entry["file_name"]), **size}


class _Object(NamedTuple):
    box: tuple[float, float, float, float]
    label: int
    ignored: bool
    area: float
    segment: Any


def _voc(path: Path, text: bytes) -> tuple[dict[str, int], list[tuple]]:
    """Size and objects (class, corners, difficult) of one XML file."""
    try:
        tree = ElementTree.fromstring(text)
        size = {key: int(tree.findtext(f"size/{key}", "")) for key in ("width", "height")}
        objects = []
        for entry in tree.findall("object"):
            x1, y1, x2, y2 = (
                float(entry.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = entry.findtext("difficult", "0").strip() == "1"
            name = entry.findtext("name", "").strip()
            objects.append((name, (x1 - 1, y1 - 1, x2, y2), difficult))
    except (ElementTree.ParseError, ValueError) as error:
        raise _malformed(path, f"{type(error).__name__} {error}") from error
    return size, objects


def _annotated(
    path: Path, size: dict[str, Any], objects: list[_Object], masks: bool
) -> AnnotatedImage:
    return AnnotatedImage(
        path,
        int(size["width"]),
        int(size["height"]),
        np.array([o.box for o in objects], dtype=np.float32).reshape(-1, 4),
        np.array([o.label for o in objects], dtype=np.int64),
        np.array([o.ignored for o in objects], dtype=bool),
        np.array([o.area for o in objects], dtype=np.float32),
        [o.segment for o in objects] if masks else None,
    )


def _segment(segment: Any) -> Any:
    """Polygons as arrays, run lengths as they are; None if there is none."""
    if isinstance(segment, dict) and {"size", "counts"} <= segment.keys():
        return segment
    if not segment:
        return None
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segment]
    if any(p.ndim != 1 or p.size < 6 or p.size % 2 or not np.isfinite(p).all() for p in polygons):
        raise ValueError("a polygon is not three or more points")
    return polygons


class _Faults:
    """Objects whose boxes cannot be used: a few are left out, more are an error."""

    def __init__(self, source: Path, total: int) -> None:
        self.source, self.total, self.count = source, total, 0

    def checked(
        self, box: tuple[float, ...], size: dict[str, Any], where: str
    ) -> tuple[float, float, float, float] | None:
        """The box within its image; None if it is left out."""
        width, height = int(size["width"]), int(size["height"])
        x1, y1, x2, y2 = box
        if not all(map(math.isfinite, box)):
            fault = "is not four finite numbers"
        elif min(x1, y1) < -ROUNDING or x2 > width + ROUNDING or y2 > height + ROUNDING:
            fault = f"leaves its image of {width} x {height}"
        else:
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
            # What float32 leaves of it must still be a box.
            if np.float32(x2) > np.float32(x1) and np.float32(y2) > np.float32(y1):
                return x1, y1, x2, y2
            fault = "has no area"
        self.count += 1
        if self.count > FAULTY_SHARE * self.total:
            shown = ", ".join(f"{number:g}" for number in box)
            raise UserError(
                f"a box {fault}: corners {shown}, {where}, in {self.source} ({self.count} wrong so "
                f"far). One in {1 / FAULTY_SHARE:.0f} may be wrong and is left out. Correct or "
                "remove it."
            )
        return None


def _check_class(word: Any, known: bool, where: str, path: Path, classes: Sequence[str]) -> None:
    if not known:
        raise UserError(
            f"class of an object is unknown: {word}, {where} in {path}. The training set has "
            f"{len(classes)}: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}. "
            "Correct the annotation, or train on a set that has the class."
        )


def _check_files(paths: list[Path], source: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"image file is missing: {missing[0]} ({len(missing)} of {len(paths)} that {source} "
            "names). Each annotated image is there. Complete the folder, or name another."
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"annotations cannot be read: {path} ({error.strerror}). COCO's are one JSON file, "
            "VOC's an XML file an image and a list of names. Complete the folder, or name another."
        ) from error


def _malformed(path: Path, found: str) -> UserError:
    return UserError(
        f"annotations are malformed: {path} ({found}). COCO's JSON has images, annotations and "
        "categories, VOC's XML a size and objects with a name and a bndbox. Restore the file."
    )
