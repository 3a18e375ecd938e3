"""The pictures of a report: one style, one colour a run, for a light and a dark page.

Figures are made without pyplot, which keeps state between calls. Words come from files: they are
drawn as they are, never as mathematics.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from solo_minent.evaluation.umap import COLORS
from solo_minent.files import write_atomic
from solo_minent.methods import available
from solo_minent.report.collect import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

RUN_ORDER = (0, 1, 2, 4, 9, 6, 5, 7, 8, 3)  # greys last
# Of those that are too dark on a dark page, what stands there instead.
BRIGHTER = {"#bd1f01": "#f0583a", "#832db6": "#b474e3", "#a96b59": "#c98f7f", "#717581": "#9ba1ad"}
DASHES = ("solid", "dashed", "dotted", "dashdot")
CSS_DASHES = ("solid", "dashed", "dotted", "double")
SAME, OTHER = "#009e73", "#d55e00"  # Okabe and Ito's green and vermilion
INK, GRID = ("#24292f", "#d5d9de"), ("#d8dee4", "#3a4149")  # on a light and a dark page
PANEL, COLUMNS = (4.2, 2.8), 3  # inches
MOST_TERMS = 4  # of a method; beyond them, those that it calls its monitors
LABELLED_CLASSES = 20
TITLES = {
    "knn_acc1": "kNN accuracy, %",
    "val_acc1": "online linear accuracy, %",
    "lr": "learning rate",
}
STYLE = {
    "text.parse_math": False,
    "text.hinting": "none",
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "solo_minent",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "savefig.dpi": 120,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "text.color": INK[0],
    "axes.edgecolor": GRID[0],
    "axes.labelcolor": INK[0],
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK[0],
    "ytick.color": INK[0],
    "axes.grid": True,
    "grid.color": GRID[0],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Panel:
    """One column of the logs over the epochs."""

    title: str
    column: str


def colour(number: int) -> str:
    """Of run `number`, in a picture and on a light page."""
    return COLORS[RUN_ORDER[number % len(RUN_ORDER)]]


def page_colours() -> list[tuple[str, str]]:
    """The colours of runs on a light and on a dark page."""
    light = [colour(number) for number in range(len(COLORS))]
    return [(each, BRIGHTER.get(each, each)) for each in light]


def dash(number: int) -> str:
    """Line style of run `number`: runs of one colour differ in it."""
    return DASHES[number // len(COLORS) % len(DASHES)]


def css_dash(number: int) -> str:
    """The same for a border."""
    return CSS_DASHES[number // len(COLORS) % len(CSS_DASHES)]


def curve_panels(runs: list[Run]) -> list[Panel]:
    """Loss of each method, accuracies, learning rate, then the terms of each method."""
    methods = list(dict.fromkeys(run.config.method for run in runs))
    panels = [Panel(f"{name} loss", f"train_{name}_loss") for name in methods]
    panels += [Panel(title, column) for column, title in TITLES.items()]
    for name in methods:
        logs = [run.log for run in runs if run.config.method == name]
        prefix = f"train_{name}_"
        terms = [c for c in _columns(logs) if c.startswith(prefix) and c != f"{prefix}loss"]
        if len(terms) > MOST_TERMS:
            terms = [f"{prefix}{term}" for term in available()[name].monitors]
        panels += [Panel(f"{name} {_words(term.removeprefix(prefix))}", term) for term in terms]
    return _filled(panels, runs)


def monitor_panels(runs: list[Run]) -> list[Panel]:
    """Every column `monitor_*` of any run."""
    columns = [c for c in _columns([run.log for run in runs]) if c.startswith("monitor_")]
    return _filled([Panel(_words(c.removeprefix("monitor_")), c) for c in columns], runs)


def draw_panel(panel: Panel, runs: list[Run]) -> Figure:
    """One panel without legend."""
    figure = _figure(PANEL)
    _draw(figure.add_subplot(), panel, runs)
    return figure


def draw_panels(panels: list[Panel], runs: list[Run], title: str) -> Figure:
    """All panels in one picture, with a legend if there are several runs."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure((PANEL[0] * columns, PANEL[1] * rows + 0.4))
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, columns, number), panel, runs)
    figure.suptitle(title, fontsize=11)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colour(i), linestyle=dash(i)) for i in range(len(runs))]
        labels = [run.label for run in runs]
        figure.legend(lines, labels, loc="outside lower center", ncols=min(len(runs), 4))
    return figure


def draw_projection(points: np.ndarray, labels: np.ndarray, classes: list[str]) -> Figure:
    """points (N, 2) in the colours of labels (N,); names at the medians, unless they are many."""
    import matplotlib as mpl

    figure = _figure((4.6, 4.2))
    axis = figure.add_subplot()
    count = len(classes)
    wheel = mpl.colormaps["turbo"](np.linspace(0, 1, max(count, 1)))
    shades = COLORS if count <= len(COLORS) else wheel
    # In an order that mixes the classes, so that none covers the others.
    mixed = np.random.default_rng(0).permutation(len(points))
    shade = [shades[c] for c in labels[mixed]]
    axis.scatter(*points[mixed].T, s=11, c=shade, linewidths=0, alpha=0.8)
    if count <= LABELLED_CLASSES:
        plate = {"boxstyle": "round,pad=0.18", "facecolor": "#ffffffdd", "edgecolor": "none"}
        for c in np.unique(labels):
            x, y = np.median(points[labels == c], axis=0)
            about = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold"}
            axis.text(x, y, classes[c], color="#1b1f24", bbox=plate, **about)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(True)
    return figure


def draw_confusion(counts: np.ndarray, classes: list[str]) -> Figure:
    """counts (C, C): rows are true classes, columns predictions; shades are shares of a row."""
    from matplotlib.colors import LinearSegmentedColormap

    size = 1.2 + 0.31 * len(classes)
    figure = _figure((size, size))
    axis = figure.add_subplot()
    # From nothing to blue, so that it suits any page.
    fade = LinearSegmentedColormap.from_list("fade", [(*_rgb(COLORS[0]), a) for a in (0, 1)])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap=fade, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axis.text(column, row, f"{count}", ha="center", va="center", fontsize=8)
    ticks = range(len(classes))
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    turned = 0 if max(map(len, names)) <= 2 else 90
    axis.set_xticks(ticks, names, rotation=turned)
    axis.set_yticks(ticks, names)
    axis.set(xlabel="predicted", ylabel="true")
    axis.tick_params(length=0)
    axis.grid(False)
    return figure


def mosaic(rows: list[list[tuple[Image, bool | None]]], side: int = 72) -> Image:
    """Images in rows, each in a frame: none for a query, else same class or another one."""
    from PIL import Image as Images
    from PIL import ImageDraw

    cell, frame = side + 14, 4
    sheet = Images.new("RGB", (cell * max(map(len, rows)), cell * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (image, same) in enumerate(row):
            left, top = x * cell + 7, y * cell + 7
            if same is not None:
                box = (left - frame, top - frame, left + side + frame, top + side + frame)
                pen.rectangle(box, fill=SAME if same else OTHER)
            sheet.paste(fitted(image, side), (left, top))
    return sheet


def fitted(image: Image, side: int) -> Image:
    """The middle square of an image in side x side pixels; pixels stay visible when it is small."""
    from PIL import Image as Images
    from PIL import ImageOps

    small = max(image.size) < side
    return ImageOps.fit(image, (side, side), Images.NEAREST if small else Images.LANCZOS)


def image_uri(image: Image) -> str:
    """A data URI: PNG, which small images need to stay sharp."""
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer.getvalue())


def svg_uris(draw: Callable[[], Figure]) -> dict[str, str]:
    """`draw`'s figure as data URIs {"light": …, "dark": …}, with a transparent background."""
    buffer = BytesIO()
    with _style():
        # Neither date nor random ids: the same runs make the same page.
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    light = buffer.getvalue()
    dark = light
    for old, new in {INK[0]: INK[1], GRID[0]: GRID[1], **BRIGHTER}.items():
        dark = dark.replace(old.encode(), new.encode())
    return {"light": _uri("image/svg+xml", light), "dark": _uri("image/svg+xml", dark)}


def png_uri(draw: Callable[[], Figure]) -> str:
    """`draw`'s figure as one data URI for any page, with a transparent background."""
    buffer = BytesIO()
    with _style():
        draw().savefig(buffer, format="png", transparent=True)
    return _uri("image/png", buffer.getvalue())


def save_png(path: Path, draw: Callable[[], Figure]) -> None:
    """Writes `draw`'s figure on white, whole or not at all."""
    with _style():
        figure = draw()
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def save_image(path: Path, image: Image) -> None:
    """Writes a PIL image as PNG, whole or not at all."""
    write_atomic(path, lambda temporary: image.save(temporary, "PNG"))


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the page has the word itself.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _draw(axis: Any, panel: Panel, runs: list[Run]) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, run in enumerate(runs):
        if panel.column in run.log:
            shown = run.log[["epoch", panel.column]].dropna()
            marker = "o" if len(shown) <= 12 else None
            axis.plot(
                shown["epoch"], shown[panel.column], color=colour(number), linestyle=dash(number),
                marker=marker, markersize=3.5,
            )  # fmt: skip
    axis.set(title=panel.title, xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _columns(logs: list[pd.DataFrame]) -> list[str]:
    return list(dict.fromkeys(column for log in logs for column in log.columns))


def _filled(panels: list[Panel], runs: list[Run]) -> list[Panel]:
    return [
        panel
        for panel in panels
        if any(panel.column in run.log and run.log[panel.column].notna().any() for run in runs)
    ]


def _words(column: str) -> str:
    return column.replace("_", " ")


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
