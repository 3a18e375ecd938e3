"""Annotated sets of a few small pictures, in COCO's and in VOC's format."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 64, 48
CLASSES = {"disc": 5, "square": 9}  # COCO's ids have gaps


def draw(path, objects):
    """A dark picture with a green disc or a red square in each box."""
    noise = np.random.default_rng(len(objects)).integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pen = ImageDraw.Draw(image)
    for name, (x1, y1, x2, y2) in objects:
        shape, colour = (pen.ellipse, (30, 220, 60)) if name == "disc" else (pen.rectangle, "red")
        shape((x1, y1, x2 - 1, y2 - 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def scene(number):
    """Two objects, placed by the number of the picture."""
    rng = np.random.default_rng(number)
    x, y, size = (int(rng.integers(*ends)) for ends in ((0, 12), (0, 12), (14, 24)))
    first = (0, 0, 20, 10) if number == 1 else (x, y, x + size, y + size)
    return [("square", first), ("disc", (34, 20, 34 + size, 20 + size))]


@pytest.fixture
def tiny_coco(tmp_path):
    """8 training and 4 test pictures with boxes and polygons."""
    root = tmp_path / "shapes"
    for split, numbers in (("train", range(1, 9)), ("val", range(9, 13))):
        images, annotations = [], []
        for number in numbers:
            name = f"{number:06d}.png"
            draw(root / split / name, scene(number))
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            for label, (x1, y1, x2, y2) in scene(number):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CLASSES[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    }
                )
        categories = [{"id": key, "name": name} for name, key in CLASSES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return root


@pytest.fixture
def tiny_voc(tmp_path):
    """VOC2007 with 5 training and 3 test pictures, VOC2012 with 3; discs are difficult in one."""
    root = tmp_path / "voc"
    lists = {("VOC2007", "trainval"): range(1, 6), ("VOC2007", "test"): range(6, 9)}
    lists["VOC2012", "trainval"] = range(9, 12)
    for (year, split), numbers in lists.items():
        base = root / "VOCdevkit" / year
        for folder in ("Annotations", "ImageSets/Main"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        names = [f"{number:06d}" for number in numbers]
        (base / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in zip(numbers, names, strict=True):
            draw(base / "JPEGImages" / f"{name}.jpg", scene(number))
            objects = "".join(
                f"<object><name>{label}</name>"
                f"<difficult>{int(number == 1 and label == 'disc')}</difficult>"
                f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for label, (x1, y1, x2, y2) in scene(number)
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            text = f"<annotation>{size}{objects}</annotation>"
            (base / "Annotations" / f"{name}.xml").write_text(text)
    return root
