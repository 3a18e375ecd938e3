"""The index of the zoo, `models.yaml`: read, checked to the last key, written.

It may come from somebody else (`SOLO_MINENT_ZOO`): nothing in it is run, no name in it leads out of
the folders that it is for, and nothing is fetched without a hash.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from solo_minent.allowed import Range, check_one_of, check_range, closest, reason, short
from solo_minent.errors import UserError
from solo_minent.files import locked, write_text
from solo_minent.zoo.schema import (
    DTYPES,
    FORMATS,
    MAX_BYTES,
    OURS,
    THEIRS,
    Entry,
    FileEntry,
    Metric,
    plain,
)

INDEX = "models.yaml"
VARIABLE = "SOLO_MINENT_ZOO"
MAX_INDEX = 1 << 22  # bytes of the index
MAX_DEPTH = 12  # of its brackets
MAX_FEATURES = 1 << 20
HUB = "hf"
SCHEMES = ("https", "http", HUB)
EVALUATIONS = ("online", "linear", "knn")
WHICH = ("student", "teacher")
# Names of files, not of models, where a backbone is named.
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Words that name something else where a backbone is named.
RESERVED = ("trained", "random", "pixels", "teacher")
HEAD = """\
# The models of the zoo, one entry each; `solo-minent zoo add` writes it, `zoo verify` checks it.
# What the keys mean: solo_minent/zoo/schema.py.
"""


def zoo_folder() -> Path:
    """The folder that holds `models.yaml`: SOLO_MINENT_ZOO, the checkout's, or the package's own.

    Raises:
        UserError: SOLO_MINENT_ZOO names no such folder.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not (folder / INDEX).is_file():
            raise UserError(
                f"zoo is missing: {folder / INDEX}. {VARIABLE} names a folder with {INDEX}. "
                f"Correct it, or unset {VARIABLE}."
            )
        return folder
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "zoo"
    # A wheel has the index in the package (setup.py); site-packages/zoo would be somebody else's.
    return package if (package / INDEX).is_file() else checkout


def read_index(folder: Path | None = None) -> list[Entry]:
    """The models of an index, in its order.

    Args:
        folder: that holds `models.yaml`; `zoo_folder()` if not given.

    Raises:
        UserError: the index is missing or wrong; it names model and key.
    """
    path = (folder or zoo_folder()) / INDEX
    raw = _parsed(path)
    if not isinstance(raw, dict) or set(raw) != {"version", "models"} or raw["version"] != 1:
        raise _wrong(path, "it holds `version: 1` and `models`, nothing else")
    if not isinstance(raw["models"], list):
        raise _wrong(path, "models is no list")
    entries = [_entry(path, number, values) for number, values in enumerate(raw["models"])]
    _check_double(path, entries)
    return entries


def find_model(name: str, folder: Path | None = None) -> Entry:
    """The entry of a model.

    Raises:
        UserError: the zoo has none of that name.
    """
    entries = {entry.id: entry for entry in read_index(folder)}
    if name in entries:
        return entries[name]
    if not entries:
        raise UserError(
            f"model is unknown: {short(name)}. The zoo at {folder or zoo_folder()} has no models "
            "yet. Train one with solo-minent pretrain."
        )
    raise UserError(
        f"model is unknown: {short(name)}. The zoo has {', '.join(entries)}. "
        f"The nearest is {closest(name, entries)}."
    )


def write_index(folder: Path, entries: list[Entry]) -> None:
    """Writes the index, whole or not at all, after it was checked.

    Raises:
        UserError: an entry is wrong, or the disk is full.
    """
    from omegaconf import OmegaConf

    path = folder / INDEX
    values = [plain(entry) for entry in entries]
    for number, value in enumerate(values):
        _entry(path, number, value)
    _check_double(path, entries)
    text = OmegaConf.to_yaml(OmegaConf.create({"version": 1, "models": values}))
    write_text(path, HEAD + text)


@contextmanager
def adding(folder: Path) -> Iterator[Path]:
    """An empty folder of a zoo for what is being made; one process changes a zoo at a time.

    Others of this machine wait. The folder also keeps out those that see no lock.

    Raises:
        UserError: no zoo is there, or another machine is at it, or a killed process was.
    """
    if not (folder / INDEX).is_file():
        raise UserError(
            f"zoo is missing: {folder / INDEX}. A model is added to a checkout. Give --zoo DIR."
        )
    work = folder / "checkpoints" / ".adding"
    with locked(folder / INDEX):
        try:
            work.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(
                f"another model is being added: {work} is there. One at a time is. "
                f"If none is, remove what a killed one left: rm -r {work}"
            ) from error
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # it is not empty
                work.parent.rmdir()


def check_entry(folder: Path, entry: Entry) -> None:
    """Raises UserError unless an entry could be written into the index of a folder."""
    _entry(folder / INDEX, 0, plain(entry))


def _check_double(path: Path, entries: list[Entry]) -> None:
    for what, names in (
        ("id", [python_name(entry.id) for entry in entries]),
        ("file name", [file.name.lower() for entry in entries for file in entry.files]),
    ):
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise _wrong(path, f"{what} is there twice: {double[0]}")


def _parsed(path: Path) -> Any:
    """The YAML as plain values: no anchors, tags, interpolations, or depths that cost a stack."""
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(
            f"model index is missing: {path}. The package and its repository have one. "
            "Install the package again."
        )
    if path.stat().st_size > MAX_INDEX:
        raise _wrong(path, f"it is larger than {MAX_INDEX:,} bytes")
    try:
        text = path.read_bytes().decode("utf-8")
        _check_events(path, text)
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UserError:
        raise
    # PyYAML and OmegaConf raise whatever they trip over.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        if mark is not None:
            raise _wrong(path, short(f"line {mark.line + 1}: {error.problem}")) from error
        raise _wrong(path, " ".join(reason(error).split())[:200]) from error


def _check_events(path: Path, text: str) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _wrong(path, f"line {line} has an anchor or alias")
        if getattr(event, "tag", None):
            raise _wrong(path, f"line {line} has a tag, {event.tag}")
        if isinstance(event, yaml.ScalarEvent):
            if "${" in event.value:
                raise _wrong(path, f"line {line} has an interpolation")
            if not event.value.isprintable():
                raise _wrong(path, f"line {line} has unprintable characters")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _wrong(path, f"line {line} is more than {MAX_DEPTH} brackets deep")


def _entry(path: Path, number: int, values: Any) -> Entry:
    from omegaconf import OmegaConf

    named = values.get("id") if isinstance(values, dict) else None
    where = f"model {short(named)}" if isinstance(named, str) else f"model {number + 1}"
    try:
        if not isinstance(values, dict):
            raise UserError(f"it is no mapping of keys: {short(values)}")
        for key, kind in (("files", FileEntry), ("metrics", Metric)):
            if isinstance(values.get(key), list):
                for place, each in enumerate(values[key]):
                    _typed(kind, each, f"{key}[{place}]: ")
        typed = _typed(Entry, values)
        missing = sorted(OmegaConf.missing_keys(typed) - {"backbone.stem"})
        if missing:
            raise UserError(f"{missing[0]} is missing")
        entry = OmegaConf.to_object(typed)
        _check(entry)
    except UserError as error:
        raise _wrong(path, f"{where}, {error}") from error
    return entry


def _typed(kind: type, values: Any, where: str = "") -> Any:
    """Values as a dataclass has them; OmegaConf tells the key, but not of a list's item."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.merge(OmegaConf.structured(kind), values)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{where}{short(' '.join(reason(error).split()))}") from error


def _check(entry: Entry) -> None:
    """Raises UserError with the key that is wrong."""
    _check_matches("id", entry.id, r"[a-z0-9]+([._-][a-z0-9]+)*", "letters a-z, digits and - _ .")
    if entry.id in RESERVED or len(entry.id) > 80 or entry.id.endswith(SUFFIXES):
        raise UserError(f"id may not be {short(entry.id)}")
    if not entry.files:
        raise UserError("files is empty: a model has one at least")
    for place, file in enumerate(entry.files):
        _check_file(f"files[{place}]", file)
    needed = OURS if entry.ours else THEIRS
    absent = [key for key in needed if getattr(entry, key) in (None, [])]
    if absent:
        raise UserError(f"{absent[0]} is missing: {'ours' if entry.ours else 'external'} has it")
    check_one_of("which", entry.which, WHICH)
    for key in ("epochs", "batch_size", "train_images"):
        if getattr(entry, key) is not None:
            check_range(key, getattr(entry, key), Range(1, 1))
    if entry.hours is not None:
        check_range("hours", entry.hours, Range(0, 1, above=True))
    check_range("feature_dim", entry.feature_dim, Range(1, 512, high=MAX_FEATURES))
    _check_images(entry)
    _check_arguments("backbone.kwargs", entry.backbone.kwargs)
    for place, metric in enumerate(entry.metrics):
        _check_metric(f"metrics[{place}].", metric)
    if entry.page is not None:
        check_url("page", entry.page, ("https", "http"))
    for key in ("config", "log", "results", "environment"):
        if getattr(entry, key) is not None:
            _check_path(key, getattr(entry, key))
    if entry.recipe is not None:
        _check_matches("recipe", entry.recipe, r"\w+/\w+", "<data set>/<method>")
    if entry.commit is not None:
        _check_matches("commit", entry.commit, r"[\w.-]{1,80}", "what git describe says")
    if entry.date is not None:
        _check_matches("date", entry.date, r"\d{4}-\d\d-\d\d", "YYYY-MM-DD")


def _check_file(key: str, file: FileEntry) -> None:
    check_one_of(f"{key}.format", file.format, FORMATS)
    check_one_of(f"{key}.dtype", file.dtype, DTYPES)
    words = "one name of letters, digits and - _ ."
    _check_matches(f"{key}.name", file.name, r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*", words)
    if len(file.name) > 120 or PurePosixPath(file.name).suffix not in FORMATS[file.format]:
        raise UserError(
            f"{key}.name is {short(file.name)}: {file.format} ends in "
            f"{' or '.join(FORMATS[file.format])}"
        )
    _check_matches(f"{key}.sha256", file.sha256, r"[0-9a-f]{64}", "64 hex digits")
    check_range(f"{key}.bytes", file.bytes, Range(1, 1, high=MAX_BYTES))
    for place, url in enumerate(file.urls):
        if "://" in url:
            check_url(f"{key}.urls[{place}]", url)
        else:
            _check_path(f"{key}.urls[{place}]", url)


def check_url(key: str, url: str, schemes: tuple[str, ...] = SCHEMES) -> None:
    """Raises UserError unless a url is of a scheme and names a host, and nobody's password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{key} is no url: {short(url)} ({error})") from error
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{key} has a user or password in it: {short(parts.scheme)}://…@…")
    if parts.scheme not in schemes or not host or re.search(r"[\s\\]", url):
        raise UserError(f"{key} is {short(url)}: it begins with {', '.join(schemes)} and a host")
    if parts.scheme == HUB and not re.fullmatch(
        rf"{HUB}://[\w.-]+/[\w.-]+(/[\w-][\w.-]*)+@[\w.-]+", url, re.ASCII
    ):
        raise UserError(f"{key} is {short(url)}: {HUB}://<owner>/<repository>/<path>@<revision>")


def _check_path(key: str, path: str) -> None:
    """Below the index's folder, on every system."""
    parts = path.split("/")
    plain = re.fullmatch(r"[A-Za-z0-9_./-]+", path)
    if not plain or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise UserError(f"{key} is {short(path)}: a path below the folder of {INDEX} is taken")


def _check_images(entry: Entry) -> None:
    constants = entry.normalization
    check_range("normalization.image_size", constants.image_size, Range(1, 32, high=4096))
    for key in ("mean", "std"):
        values = getattr(constants, key)
        if len(values) != 3:
            raise UserError(f"normalization.{key} has {len(values)} numbers: one a channel, 3")
        for value in values:
            check_range(f"normalization.{key}", value, Range(0, 0.5, above=key == "std", high=10))


def _check_metric(key: str, metric: Metric) -> None:
    check_one_of(f"{key}evaluation", metric.evaluation, EVALUATIONS)
    check_range(f"{key}top1", metric.top1, Range(0, 50, high=100))
    check_range(f"{key}seeds", metric.seeds, Range(1, 1))


def _check_arguments(key: str, values: dict[str, Any]) -> None:
    """Numbers, words and lists of them: what a constructor takes from a file."""
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, int | float | str | bool | None):
                raise UserError(f"{key}.{short(name)} is no number, word or list of them")


def _check_matches(key: str, value: str, pattern: str, words: str) -> None:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise UserError(f"{key} is {short(value)}: it is made of {words}")


def _wrong(path: Path, what: str) -> UserError:
    return UserError(
        f"model index is wrong: {path} ({what.rstrip('.')}). Every key and value of it is checked. "
        "Correct or restore the file."
    )


def python_name(name: str) -> str:
    """An id as the name of a function, for torch.hub."""
    return name.replace("-", "_").replace(".", "_")


def files_of(entries: list[Entry]) -> Iterator[tuple[Entry, FileEntry]]:
    """Every file of every model."""
    for entry in entries:
        for file in entry.files:
            yield entry, file
