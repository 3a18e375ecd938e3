"""What a set of images gives, and what it says of an image that cannot be decoded."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from solo_minent.data.images import (
    ArrayImages,
    CorruptImageError,
    FileImages,
    ImageSet,
    MappedImages,
    decode,
)
from solo_minent.errors import UserError


def encode(photo, kind, **options):
    buffer = io.BytesIO()
    photo.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, photo):
    """Eight JPEGs, the sixth of them cut short."""
    data = encode(photo, "JPEG")
    for index in range(8):
        (tmp_path / f"{index}.jpg").write_bytes(data[: len(data) // 2] if index == 5 else data)
    return tmp_path


@pytest.fixture
def files(folder):
    paths = [str(folder / f"{index}.jpg") for index in range(8)]
    return FileImages(paths, np.arange(8), [str(label) for label in range(8)])


@pytest.fixture
def arrays():
    pixels = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    return ArrayImages(pixels, np.arange(6), list("abcdef"), "noise train")


@pytest.fixture
def mapped(tmp_path):
    """Two files of 3 and 4 images of 5 x 4 pixels, column by column, and the pixels in them."""
    pixels = np.random.RandomState(1).randint(0, 256, (7, 5, 4, 3)).astype(np.uint8)
    files = [tmp_path / "first.bin", tmp_path / "second.bin"]
    for file, part in zip(files, (pixels[:3], pixels[3:]), strict=True):
        file.write_bytes(part.transpose(0, 3, 2, 1).tobytes())
    targets = [0, 1, 2, -1, -1, -1, -1]
    return MappedImages(files, (4, 5), targets, list("abc"), "blocks pretrain"), pixels


def test_files_are_decoded_to_rgb_and_given_as_they_are(files, folder, photo):
    image, label = files[3]
    assert (image.mode, image.size, label) == ("RGB", (40, 40), 3)
    assert abs(np.asarray(image).astype(int) - np.asarray(photo)).mean() < 10
    assert files.has_files
    assert files.encoded(2) == (folder / "2.jpg").read_bytes()
    assert files.name_of(4) == str(folder / "4.jpg")
    assert files.targets.dtype == np.int64
    part = files.select(np.array([6, 1]))
    assert (part.file_names(), part.targets.tolist()) == (["6.jpg", "1.jpg"], [6, 1])
    assert part.classes == files.classes


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(photo, mode):
    source = Image.new("I;16", (4, 3), 300) if mode == "I;16" else photo.convert(mode)
    data = encode(source, "JPEG" if mode == "CMYK" else "PNG")
    image = decode(data, "x")
    assert (image.mode, image.size) == ("RGB", source.size)


def broken_files():
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    photo = Image.fromarray(noise)
    jpeg, png = encode(photo, "JPEG"), encode(photo, "PNG")
    bad_chunk = png[:40] + bytes(b ^ 255 for b in png[40:60]) + png[60:]
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = header + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:]
    return {
        "empty": (b"", "the file is empty"),
        "text": (b"404 not found", "not an image"),
        "jpeg cut short": (jpeg[: len(jpeg) * 2 // 3], "image file is truncated"),
        "jpeg header alone": (jpeg[:20], "."),
        "png cut short": (png[: len(png) // 2], "."),
        "png with a broken chunk": (bad_chunk, "."),
        "png of 60000 x 60000": (bomb, "decompression bomb"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_a_broken_image_is_named(case):
    data, words = broken_files()[case]
    with pytest.raises(CorruptImageError, match=words) as caught:
        decode(data, "some/image.jpg", 17)
    assert str(caught.value).startswith("cannot read an image: some/image.jpg (")
    assert (caught.value.name, caught.value.index) == ("some/image.jpg", 17)
    assert f"({caught.value.reason})" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def test_the_index_of_a_broken_image_is_that_in_the_set_asked(files):
    part = files.select(np.array([2, 5]))
    part[0]
    with pytest.raises(CorruptImageError, match=r"5\.jpg") as caught:
        part[1]
    assert caught.value.index == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is CorruptImageError
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)


class Labels(torch.utils.data.Dataset):
    """Decodes, and gives the label alone."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index][1]


def test_a_worker_reports_a_broken_image_in_one_line(files, folder):
    batches = iter(DataLoader(Labels(files), batch_size=2, num_workers=1))
    message = ""
    try:  # pytest.raises would keep the iterator, which then waits 5 s for its workers
        list(batches)
    except CorruptImageError as error:
        message = str(error)
    del batches
    assert message.startswith(f"cannot read an image: {folder / '5.jpg'} (")
    assert "Traceback" not in message and "\n" not in message


def test_a_file_that_is_gone_is_no_corrupt_image(files, folder):
    (folder / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read a file: .*1\.jpg") as caught:
        files[1]
    assert not isinstance(caught.value, CorruptImageError)


@pytest.mark.timeout(30)
def test_a_pipe_is_not_waited_for(files, folder):
    (folder / "1.jpg").unlink()
    os.mkfifo(folder / "1.jpg")
    with pytest.raises(CorruptImageError, match=r"1\.jpg \(no regular file\)"):
        files[1]


def test_a_size_that_a_header_invents_is_refused_before_memory_is_taken(photo):
    data = encode(photo, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    for height, width, words in ((9000, 9000, "9000 x 9000 .* bytes"), (1, 9000, "at most 256 to")):
        with pytest.raises(CorruptImageError, match=words):
            decode(data[:at] + struct.pack(">HH", height, width) + data[at + 4 :], "x.jpg")


def test_arrays_have_names_and_no_files(arrays):
    assert np.array_equal(np.asarray(arrays[2][0]), arrays.images[2])
    assert arrays.name_of(3) == "image 3 of noise train"
    part = arrays.select(np.array([4, 0])).select(np.array([1]))
    assert (part.name_of(0), part[0][1]) == ("image 0 of a part of noise train", 0)
    assert not arrays.has_files
    with pytest.raises(UserError, match="image 1 of noise train is no encoded image"):
        arrays.encoded(1)
    with pytest.raises(UserError, match="has no file"):
        arrays.file_names()


def test_mapped_images_are_turned_upright_and_counted_over_files(mapped):
    images, pixels = mapped
    assert isinstance(images, ImageSet) and len(images) == 7
    for index in range(7):
        image, label = images[index]
        assert (image.mode, image.size) == ("RGB", (4, 5))
        assert np.array_equal(np.asarray(image), pixels[index])
        assert label == [0, 1, 2, -1, -1, -1, -1][index]
    part = images.select(np.array([6, 2]))
    assert np.array_equal(part.pixels(0), pixels[6]) and part.targets.tolist() == [-1, 2]
    assert np.array_equal(part.select(np.array([1])).pixels(0), pixels[2])
    assert part.name_of(1) == "image 1 of a part of blocks pretrain"
    with pytest.raises(UserError, match="no encoded image"):
        images.encoded(0)


def test_mapped_images_travel_without_their_pixels(mapped, tmp_path):
    images, pixels = mapped
    images[0]
    sent = pickle.dumps(images)
    assert images.files[0].read_bytes() not in sent
    assert np.array_equal(pickle.loads(sent).pixels(5), pixels[5])
    loader = DataLoader(Labels(images), batch_size=3, num_workers=2)
    assert torch.cat(list(loader)).tolist() == images.targets.tolist()
