"""Sets of images: `(PIL RGB image, int label)` with `.classes` and `.targets`.

Small sets live in memory as uint8 arrays, STL-10 is mapped from its files, folders of images are
lists of paths (H5 files: `solo_minent.data.h5`). An image that cannot be decoded raises
`CorruptImageError`, which names it.
"""

from __future__ import annotations

import functools
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

UNLABELLED = -1

# Pillow's other readers are left out: they run Ghostscript (EPS), or take noise for an image (TGA).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
# A Huffman code has at least one bit, and the first scan of a JPEG one code for each 8 x 8 block.
_JPEG_PIXELS_PER_BYTE = 8 * 64
# Resizing to a short side of 256 makes a long side of 256 times the ratio.
_LONGEST_RATIO = 256


class CorruptImageError(UserError):
    """One image cannot be decoded.

    name: as `ImageSet.name_of` gives it; index: in the set that was asked; reason: what the
    decoder said. All are None where a worker of a DataLoader raised it: PyTorch carries over the
    text alone, with the worker's traceback in front, which is cut off here.
    """

    def __init__(
        self,
        message: str,
        name: str | None = None,
        index: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message.rpartition("CorruptImageError: ")[2].strip())
        self.name, self.index, self.reason = name, index, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.name, self.index, self.reason)


class ImageSet(Dataset):
    """classes: class names; targets: int64 array (N,), -1 where an image has no label.

    has_files: whether the images are kept as encoded files (`encoded`, `file_names`).
    """

    classes: list[str]
    targets: np.ndarray
    has_files = False

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """The image and its label. Raises CorruptImageError, UserError on a file that is gone."""
        name = self.name_of(index)
        return decode(self.encoded(index), name, index), int(self.targets[index])

    def select(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order, with the same classes."""
        raise NotImplementedError

    def name_of(self, index: int) -> str:
        """What to call an image in a message: its path, or `image 17 of cifar10 train`."""
        raise NotImplementedError

    def encoded(self, index: int) -> bytes:
        """The bytes of an image's file as they are. Raises UserError where there are none."""
        raise UserError(
            f"{self.name_of(index)} is no encoded image: its set is kept as pixels. Folders and "
            "h5 files hold encoded images. Set data.format=image_folder or device."
        )

    def file_names(self) -> list[str]:
        """The name of each image's file, without folders. Raises UserError where there are none."""
        raise UserError(
            f"{self.name_of(0)} has no file: its set is kept as pixels. Folders and h5 files have "
            "file names. Set data.file_list=null."
        )


class ArrayImages(ImageSet):
    """images: uint8 array (N, H, W, 3) held in memory; name: of the set, for messages."""

    def __init__(
        self, images: np.ndarray, targets: np.ndarray, classes: list[str], name: str = "the set"
    ) -> None:
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = classes
        self.name = name

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.images[index]), int(self.targets[index])

    def select(self, indices: np.ndarray) -> ArrayImages:
        name = _part_of(self.name)
        return ArrayImages(self.images[indices], self.targets[indices], self.classes, name)

    def name_of(self, index: int) -> str:
        return f"image {index} of {self.name}"


class MappedImages(ImageSet):
    """Images in files of raw uint8 (3, W, H) blocks, column by column: STL-10's layout.

    The files are mapped, not read: processes share one copy of the pages that are in use, and a
    pickled set carries its paths alone.

    files: read one after the other; size: (W, H); targets: one for each image of all files.
    """

    def __init__(
        self,
        files: list[Path],
        size: tuple[int, int],
        targets: np.ndarray,
        classes: list[str],
        name: str,
        rows: np.ndarray | None = None,
    ) -> None:
        self.files, self.size, self.classes, self.name = files, size, classes, name
        self.targets = np.asarray(targets, dtype=np.int64)
        self.rows = np.arange(len(self.targets)) if rows is None else rows
        self._maps: list[np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.pixels(index)), int(self.targets[index])

    def pixels(self, index: int) -> np.ndarray:
        """One image as uint8 (H, W, 3), copied out of its file."""
        if self._maps is None:
            flat = [np.memmap(file, np.uint8, "r") for file in self.files]
            self._maps = [each.reshape(-1, 3, *self.size) for each in flat]
        row = int(self.rows[index])
        for images in self._maps:
            if row < len(images):
                return np.ascontiguousarray(images[row].transpose(2, 1, 0))
            row -= len(images)
        raise IndexError(f"image {index} of {len(self)}")

    def select(self, indices: np.ndarray) -> MappedImages:
        name, rows, targets = _part_of(self.name), self.rows[indices], self.targets[indices]
        return MappedImages(self.files, self.size, targets, self.classes, name, rows)

    def name_of(self, index: int) -> str:
        return f"image {index} of {self.name}"


class FileImages(ImageSet):
    """paths: image files (str, or an array of bytes), decoded when they are asked for."""

    has_files = True

    def __init__(
        self, paths: list[str] | np.ndarray, targets: np.ndarray, classes: list[str]
    ) -> None:
        # One array of bytes: a list of a million str is copied page by page into every worker.
        self.paths = (
            paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths])
        )
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = classes

    def select(self, indices: np.ndarray) -> FileImages:
        return FileImages(self.paths[indices], self.targets[indices], self.classes)

    def name_of(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def encoded(self, index: int) -> bytes:
        path = self.name_of(index)
        try:
            # A pipe would be waited for, a device read without end.
            with open(path, "rb", opener=_open_at_once) as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return file.read()
                reason = "no regular file"
        except OSError as error:
            raise UserError(
                f"cannot read a file: {path} ({error.strerror}). It was there when the run "
                "started. Make it readable, or start again without it."
            ) from error
        raise _corrupt(path, index, reason)

    def file_names(self) -> list[str]:
        return [os.path.basename(os.fsdecode(path)) for path in self.paths.tolist()]


def decode(data: bytes, name: str, index: int | None = None) -> Image:
    """An image file's bytes as an RGB image. name, index: for the error.

    Raises CorruptImageError on anything but a whole image of `FORMATS`.
    """
    from PIL import UnidentifiedImageError

    try:
        with open_image(data) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    # Broken bytes surface as whatever the decoder tripped over: OSError, SyntaxError, ValueError,
    # struct.error, DecompressionBombError and more.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not data:
            reason = "the file is empty"
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image"
        raise _corrupt(name, index, reason) from error


def open_image(data: bytes) -> Image:
    """An image file's bytes as Pillow's image whose pixels are not decoded yet.

    Raises ValueError on a size that a broken header invents, before memory is taken for it: a JPEG
    of more pixels than its bytes can describe (libjpeg fills what is missing with grey), or sides
    of a ratio beyond 256. Raises what Pillow raises on anything that is no image.
    """
    from PIL import Image

    image = Image.open(BytesIO(data), formats=_formats())
    width, height = image.size
    if max(width, height) > _LONGEST_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, at most {_LONGEST_RATIO} to 1 are allowed")
    if image.format in ("JPEG", "MPO") and width * height > _JPEG_PIXELS_PER_BYTE * len(data):
        raise ValueError(f"{width} x {height} pixels cannot be described by {len(data)} bytes")
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _corrupt(name: str, index: int | None, reason: str) -> CorruptImageError:
    return CorruptImageError(
        f"cannot read an image: {name} ({reason}). It must be a whole image file. "
        "Replace or remove it, or set data.on_corrupt=skip.",
        name,
        index,
        reason,
    )


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _part_of(name: str) -> str:
    return name if name.startswith("a part of ") else f"a part of {name}"
