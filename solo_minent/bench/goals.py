"""What is to be reached, and whether the csv files of the benchmarks say that it was."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from solo_minent.errors import UserError

NOTES = "performance_notes.yaml"
FILES = {  # what is measured: its csv file in a folder of results
    "loss": "bench-loss.csv",
    "step": "bench-step.csv",
    "phases": "bench-step-phases.csv",
    "loop": "bench-step-loop.csv",
    "knn": "bench-knn.csv",
    "startup": "bench-startup.csv",
    "growth": "bench-growth.csv",
    "loader": "bench-loader.csv",
}
PICTURE = "bench-growth.png"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}

Row = Mapping[str, str]


class Part(NamedTuple):
    """One figure.

    Attributes:
        name: of what, where a goal has several parts.
        value: median.
        low: lowest of the turns; the value itself where that is not recorded.
        high: highest.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        key: its name in files.
        name: in words, with what it is compared to.
        file: key of FILES.
        limits: smallest or largest value, by device.
        pick: rows of one device -> its figures.
        unit: behind a figure: "x", "%" (of fractions) or " s".
        at_least: whether the limit is the smallest value.
    """

    key: str
    name: str
    file: str
    limits: Mapping[str, float]
    pick: Callable[[Sequence[Row]], list[Part]]
    unit: str = "x"
    at_least: bool = True

    def holds(self, part: Part, device: str) -> bool:
        """Whether a figure reaches the goal."""
        limit = self.limits[device]
        return part.value >= limit if self.at_least else part.value <= limit

    def figure(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        return f"{value:.2f}{self.unit}" if self.unit else f"{value:.0f}"

    def limit(self, device: str) -> str:
        """What is to be reached, as it is printed."""
        return f"{'≥' if self.at_least else '≤'} {self.figure(self.limits[device])}"


@dataclass(frozen=True)
class Result:
    """What was measured for a goal on a device.

    Attributes:
        goal: which one.
        device: cpu or cuda.
        parts: its figures; none where nothing was measured.
        note: why it was not reached, as a person wrote it.
    """

    goal: Goal
    device: str
    parts: list[Part] = field(default_factory=list)
    note: str = ""

    @property
    def key(self) -> str:
        """Its name in the file of notes."""
        return f"{self.goal.key}_{self.device}"

    @property
    def reached(self) -> bool | None:
        """Whether all parts reach the goal; None where there are none."""
        if not self.parts:
            return None
        return all(self.goal.holds(part, self.device) for part in self.parts)

    @property
    def measured(self) -> str:
        """The figures with their spread, the worst one first."""
        if not self.parts:
            return "not measured yet"
        sign = 1 if self.goal.at_least else -1
        ordered = sorted(self.parts, key=lambda part: sign * part.value)
        return ", ".join(self._words(part) for part in ordered)

    def _words(self, part: Part) -> str:
        figure = self.goal.figure
        text = f"{part.name} {figure(part.value)}".strip()
        if part.low < part.high:
            ends = (figure(end).removesuffix(self.goal.unit).strip() for end in part[2:])
            text += f" ({' to '.join(ends)})"
        return text


def _faster(loss: str, shape: str = "") -> Callable[[Sequence[Row]], list[Part]]:
    def pick(rows: Sequence[Row]) -> list[Part]:
        own = [row for row in rows if row["loss"] == loss and shape in row["shape"]]
        names = [row["precision"] if len(own) > 1 else "" for row in own]
        return [
            _part(name, row, "times faster", "low", "high")
            for name, row in zip(names, own, strict=True)
        ]

    return pick


def _memory(rows: Sequence[Row]) -> list[Part]:
    worst: dict[str, float] = {}
    for row in rows:
        share = float(row["MiB ours"]) / float(row["MiB plain"])
        worst[row["loss"]] = max(share, worst.get(row["loss"], 0.0))
    return [Part(loss, share, share, share) for loss, share in worst.items()]


def _share(rows: Sequence[Row]) -> list[Part]:
    own = [row for row in rows if row["phase"] == "heads and loss"]
    return [_part(row["method"], row, "share", "share low", "share high") for row in own]


def _loop(rows: Sequence[Row]) -> list[Part]:
    own = [row for row in rows if row["part"] == "loop"]
    return [_part(row["method"], row, "ratio", "ratio low", "ratio high") for row in own]


def _knn(distance: str) -> Callable[[Sequence[Row]], list[Part]]:
    def pick(rows: Sequence[Row]) -> list[Part]:
        own = (row for row in rows if row["kNN"] == "solo_minent" and row["distance"] == distance)
        return [_part(row["data"], row, "times faster", "low", "high") for row in own]

    return pick


def _knn_memory(rows: Sequence[Row]) -> list[Part]:
    own = [row for row in rows if row["kNN"] == "solo_minent"]
    return [_part(f"{row['distance']} {row['data']}", row, "of the peer's") for row in own]


def _seconds(what: str) -> Callable[[Sequence[Row]], list[Part]]:
    def pick(rows: Sequence[Row]) -> list[Part]:
        own = (row for row in rows if row["what"].startswith(what))
        return [_part("", row, "seconds", "low", "high") for row in own]

    return pick


def _unasked(rows: Sequence[Row]) -> list[Part]:
    names = {name for row in rows for name in row["unasked"].split()}
    return [Part(" ".join(sorted(names)), len(names), len(names), len(names))] if rows else []


def _part(name: str, row: Row, value: str, low: str = "", high: str = "") -> Part:
    return Part(name, *(float(row[column]) for column in (value, low or value, high or value)))


BOTH = ("cpu", "cuda")
# In this order in the tables. "Not slower" leaves 3 % to the clock.
GOALS = (
    Goal("mec", "MEC loss, n=1024 d=2048, against its plain formula", "loss",
         dict.fromkeys(BOTH, 2.0), _faster("mec", "n=1024 d=2048")),
    Goal("corinfomax", "CorInfoMax loss, d=512, against its plain formula", "loss",
         dict.fromkeys(BOTH, 1.5), _faster("corinfomax", "d=512")),
    Goal("heads", "MinEnt's eight heads against eight networks", "loss",
         {"cpu": 0.97, "cuda": 1.5}, _faster("minent heads")),
    Goal("memory", "peak memory of losses and heads, share of the plain formula's", "loss",
         dict.fromkeys(BOTH, 1.0), _memory, unit="x", at_least=False),
    Goal("share", "loss and heads in a CIFAR ResNet-18 step", "phases",
         dict.fromkeys(BOTH, 0.1), _share, unit="%", at_least=False),
    Goal("loop", "images/s of the training loop over the bare backbone's", "loop",
         {"cpu": 0.95, "cuda": 0.9}, _loop),
    Goal("knn_euclidean", "kNN, Euclidean, against solo-learn's", "knn",
         {"cpu": 5.0}, _knn("euclidean")),
    Goal("knn_cosine", "kNN, cosine, against solo-learn's", "knn", {"cpu": 5.0}, _knn("cosine")),
    Goal("knn_memory", "peak memory of kNN, share of solo-learn's", "knn",
         {"cpu": 0.25}, _knn_memory, at_least=False),
    Goal("help", "`solo-minent --help`", "startup",
         {"cpu": 1.0}, _seconds("solo-minent --help"), unit=" s", at_least=False),
    Goal("first_step", "first step of a digits run after the command", "startup",
         {"cpu": 15.0}, _seconds("first step"), unit=" s", at_least=False),
    Goal("imports", "heavy modules imported unasked", "startup",
         {"cpu": 0.0}, _unasked, unit="", at_least=False),
)  # fmt: skip


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a benchmark's csv; none where there is no file.

    Raises:
        UserError: it is no such table.
    """
    if not file.is_file():
        return []
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened, strict=True))
        if any(None in (*row, *row.values()) for row in rows):
            raise csv.Error("a line has another number of columns than the first")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"results are damaged: {file} ({error}). A csv that solo-minent bench wrote was "
            "expected. Measure again."
        ) from error
    return rows


def read_goals(folders: Sequence[Path]) -> list[Result]:
    """What the csv files of some folders say of every goal on every device it is set for.

    Of several folders with figures of one device, the first counts.

    Raises:
        UserError: a file is damaged, or notes name no goal.
    """
    notes = read_notes(folders[0] / NOTES)
    results = []
    for goal in GOALS:
        for device in goal.limits:
            result = Result(goal, device)
            note = notes.get(result.key, "")
            results.append(Result(goal, device, _parts(goal, device, folders), note))
    return results


def _parts(goal: Goal, device: str, folders: Iterable[Path]) -> list[Part]:
    for folder in folders:
        file = folder / FILES[goal.file]
        own = [row for row in read_rows(file) if row.get("device", "cpu") == device]
        try:
            parts = goal.pick(own)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"results are damaged: {file} ({type(error).__name__}: {error}). A csv that "
                "solo-minent bench wrote was expected. Measure again."
            ) from error
        if parts:
            return parts
    return []


def read_notes(file: Path) -> dict[str, str]:
    """Why goals were not reached: `<goal>_<device>: reason`, written by hand; {} without a file.

    Raises:
        UserError: it is no such YAML, or a key names no goal.
    """
    if not file.is_file():
        return {}
    from omegaconf import OmegaConf

    keys = [Result(goal, device).key for goal in GOALS for device in goal.limits]
    try:
        notes = dict(OmegaConf.load(file))
    except Exception as error:  # of YAML and OmegaConf, which have no common one
        raise UserError(
            f"notes do not load: {file} ({str(error).splitlines()[0]}). Lines `goal: reason` are "
            "expected. Mend the file."
        ) from error
    for key in notes:
        if key not in keys:
            raise UserError(
                f"notes name no goal: {key} in {file}. Goals are {', '.join(keys)}. Rename it."
            )
    return {str(key): " ".join(str(note).split()) for key, note in notes.items()}


def goal_rows(results: Iterable[Result]) -> list[dict[str, str]]:
    """The goals as a table to print."""
    words = {True: "yes", False: "NO", None: "-"}
    return [
        {
            "goal": result.goal.name,
            "device": DEVICES[result.device],
            "to reach": result.goal.limit(result.device),
            "measured": result.measured,
            "reached": words[result.reached],
            "why not": result.note or "no note yet" if result.reached is False else "",
        }
        for result in results
    ]


def print_goals(folders: Sequence[Path]) -> None:
    """Prints every goal, what was measured, whether it was reached and why not."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Goals", show_lines=True)
    rows = goal_rows(read_goals(folders))
    for column in rows[0]:
        table.add_column(column, no_wrap=column in ("device", "to reach", "reached"))
    for row in rows:
        table.add_row(*row.values())
    Console(width=160).print(table)
