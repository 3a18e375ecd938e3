"""A data set in one file: encoded images in HDF5, for file systems that dislike many small files.

Layout, also read by solo-learn's H5Dataset: one group a class, in it one uint8 array (bytes,) an
image, which holds the image file as it is. Ours adds attributes: `label` on a group (-1: the
images have no label) and `numbered` on the file (names begin with the image's number, for sets
whose order is not that of their names). Files without them are read as solo-learn does: labels by
the order of the group names.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solo_minent.data.folders import check_class_count, root_folder, select_listed
from solo_minent.data.images import UNLABELLED, ImageSet
from solo_minent.errors import UserError

if TYPE_CHECKING:
    import h5py

UNLABELLED_GROUP = "unlabelled"
_NUMBER = 9  # digits of an image's number, with the `_` that ends it


class H5Images(ImageSet):
    """The images of an h5 file.

    path: the file; classes: the names that its labels stand for, when they are not its own, as for
    a test file whose training file has more classes.

    Each process opens the file for itself at its first image: a set may be pickled and forked.
    Raises UserError where h5py is missing, or the file is missing, damaged or laid out otherwise.
    """

    has_files = True

    def __init__(self, path: str | Path, classes: list[str] | None = None) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._process = -1
        with _open(self.path) as file, _damage_named(self.path):
            labels = _labels(file, self.path)
            own = _class_names(labels)
            self.classes = own if classes is None else classes
            if strangers := sorted(set(own) - set(self.classes)):
                raise UserError(
                    f"classes without training images: {', '.join(strangers[:5])} in {self.path}. "
                    "Its classes must be those of the training file. Write both from one data set."
                )
            index = {name: label for label, name in enumerate(self.classes)}
            names = [(group, name) for group in labels for name in file[group]]
            if not names:
                raise UserError(f"no images: {self.path}. {_layout()}")
            self.numbered = bool(file.attrs.get("numbered", False))
            if self.numbered:
                names.sort(key=lambda pair: pair[1][:_NUMBER])
            targets = [index[g] if labels[g] != UNLABELLED else UNLABELLED for g, _ in names]
            self.targets = np.array(targets, dtype=np.int64)
            # One array of bytes, as for FileImages.
            self.names = np.array([f"{group}/{name}".encode() for group, name in names])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def select(self, indices: np.ndarray) -> H5Images:
        part = object.__new__(H5Images)
        part.__dict__.update(self.__getstate__())
        part.names, part.targets = self.names[indices], self.targets[indices]
        return part

    def name_of(self, index: int) -> str:
        return f"{self.path}:{self.names[index].decode()}"

    def encoded(self, index: int) -> bytes:
        if self._file is None or self._process != os.getpid():
            # A handle inherited through a fork shares its place in the file with the parent's.
            if self._file is not None:
                self._file.close()
            self._file, self._process = _open(self.path), os.getpid()
        with _damage_named(self.path):
            return _read(self._file, self.names[index], self.name_of(index))

    def file_names(self) -> list[str]:
        start = _NUMBER if self.numbered else 0
        return [name.decode().rpartition("/")[2][start:] for name in self.names.tolist()]


def _read(file: h5py.File, key: bytes, name: str) -> bytes:
    from h5py import h5d, h5o, h5s

    # h5py's own objects take several times as long as the reading.
    item = h5o.open(file.id, key)
    if not isinstance(item, h5d.DatasetID) or item.dtype != np.uint8:
        raise UserError(f"not an image file's bytes: {name}. {_layout()}")
    data = np.empty(item.shape, dtype=np.uint8)
    item.read(h5s.ALL, h5s.ALL, data)
    return data.tobytes()


class _damage_named:
    """Turns what h5py raises within a broken file into a UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, RuntimeError, KeyError)):
            raise _damaged(self.path, error) from error


def h5_split(
    dataset: str, root: str | Path | None, split: str, file_list: str | Path | None = None
) -> ImageSet:
    """One split of a data set out of h5 files; the file list is `folders.select_listed`'s.

    pretrain and train: `<root>/train.h5` (stl10's pretrain: `<root>/pretrain.h5`); test:
    `<root>/val.h5`, else `<root>/test.h5`, with the classes of `train.h5`.

    Raises UserError as H5Images, and on a number of classes that the data set does not have.
    """
    classes = h5_classes(dataset, root)
    path = _split_file(dataset, root, split)
    images = H5Images(path, classes)
    if file_list is None:
        return images
    return select_listed(images, file_list, str(path))


def h5_classes(dataset: str, root: str | Path | None) -> list[str]:
    """Class names of the training file, in the order of their labels."""
    path = _split_file(dataset, root, "train")
    with _open(path) as file, _damage_named(path):
        classes = _class_names(_labels(file, path))
    check_class_count(dataset, len(classes), path)
    return classes


def write_h5(images: ImageSet, path: str | Path, progress: bool = True) -> None:
    """Writes a set of images to one h5 file, which is there when it is whole.

    images: encoded images are stored byte for byte, arrays as PNG; path: the file, replaced if
    there is one; progress: a bar on a terminal.

    `H5Images(path)` has the same images in the same order. Raises UserError where h5py is missing,
    an image file is gone or the file cannot be written.
    """
    from solo_minent.files import write_atomic

    h5py = _h5py()
    path = Path(path)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            _fill(file, images, path.name, progress)

    try:
        write_atomic(path, write)
    except (OSError, RuntimeError) as error:  # HDF5 tells of a full disk by either
        raise UserError(
            f"cannot write: {path} ({error}). A writable folder with room for the images was "
            "expected. Choose another one."
        ) from error


def _fill(file: h5py.File, images: ImageSet, title: str, progress: bool) -> None:
    from solo_minent.console import progress_bar

    labels = images.targets.tolist()
    groups = {label: file.create_group(name) for label, name in enumerate(images.classes)}
    for label, group in groups.items():
        group.attrs["label"] = label
    if UNLABELLED in labels:
        groups[UNLABELLED] = file.create_group(UNLABELLED_GROUP)
        groups[UNLABELLED].attrs["label"] = UNLABELLED
    names = images.file_names() if images.has_files else [".png"] * len(images)
    keys = [(groups[label].name, name) for label, name in zip(labels, names, strict=True)]
    # h5 lists a group by name: what is not in that order, or not unique, gets numbers.
    numbered = any(first >= second for first, second in zip(keys, keys[1:], strict=False))
    if numbered or not images.has_files:
        file.attrs["numbered"] = numbered = True
    with progress_bar(progress) as bar:
        task = bar.add_task(title, total=len(images))
        for index, (label, name) in enumerate(zip(labels, names, strict=True)):
            data = images.encoded(index) if images.has_files else _png(images[index][0])
            key = f"{index:0{_NUMBER - 1}d}_{name}" if numbered else name
            groups[label].create_dataset(key, data=np.frombuffer(data, dtype=np.uint8))
            bar.update(task, completed=index + 1)


def _png(image: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _labels(file: h5py.File, path: Path) -> dict[str, int]:
    """The label of each group, by name; numbered by name where the file gives none."""
    import h5py

    groups = sorted(file)
    wrong = [name for name in groups if not isinstance(file[name], h5py.Group)]
    if wrong:
        raise UserError(f"not a file of images: {path} holds {wrong[0]}. {_layout()}")
    return {
        name: int(file[name].attrs.get("label", position)) for position, name in enumerate(groups)
    }


def _class_names(labels: dict[str, int]) -> list[str]:
    return sorted((name for name in labels if labels[name] != UNLABELLED), key=labels.get)


def _split_file(dataset: str, root: str | Path | None, split: str) -> Path:
    base = root_folder(dataset, root)
    names = ["val.h5", "test.h5"] if split == "test" else ["train.h5"]
    if dataset == "stl10" and split == "pretrain":
        names = ["pretrain.h5"]
    for place in (base, base / dataset):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise UserError(
        f"no {' or '.join(names)} in {base}. data.format=h5 reads train.h5 and val.h5 there. "
        f"Write them: solo-minent prepare {dataset} --root {base} --h5, or set "
        "data.format=image_folder."
    )


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(
            "h5 files need a package that is missing: h5py. It reads and writes data.format=h5. "
            "Install it: pip install h5py"
        ) from error
    return h5py


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise UserError(f"no such file: {path}. {_layout()} Give its folder: data.root=<folder>")
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"the h5 file is damaged: {path} ({reason}). {_layout()} Write it again.")


def _layout() -> str:
    return "Expected an HDF5 file with one group a class and one array of bytes an image."
