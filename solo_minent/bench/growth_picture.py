"""The picture of `solo-minent bench growth`: time above, memory below, one column a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.bench.growth import exponents
from solo_minent.files import write_atomic
from solo_minent.report.figures import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
LOADER = "#e69f00"
COLOURS = {  # Okabe and Ito's: told apart by everybody
    "mec": "#d55e00",
    "corinfomax": "#0072b2",
    "twist": "#cc79a7",
    "minent": "#009e73",
    "kNN": INK[0],
}
MARKERS = {"mec": "o", "corinfomax": "s", "twist": "^", "minent": "D", "kNN": "o"}
COLUMNS = (  # title, what grows
    ("Losses, batch n", ("n",)),
    ("Losses, width", ("d", "C", "Σd")),
    ("kNN, training points", ("training points",)),
)
SLOPES = {1: "x", 2: "x²", 3: "x³"}
SIZE = (11.0, 5.4)  # inches
PALE = "#8a929a"


def draw_growth(rows: Sequence[Row], png: Path) -> None:
    """Draws the rows of `bench_growth`, those of the last device in them, into a file."""
    import matplotlib
    from matplotlib.figure import Figure

    device = rows[-1]["device"]
    own = [row for row in rows if row["device"] == device]
    with matplotlib.rc_context(STYLE | {"font.size": 8.5, "savefig.dpi": 150}):
        figure = Figure(SIZE, layout="constrained")
        _draw(figure, own)
        write_atomic(png, lambda temporary: figure.savefig(temporary, format="png"))


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots(2, len(COLUMNS) + 1, sharex="col")
    slopes = {(e.method, e.against, e.quantity): e.slope for e in exponents(rows)}
    for column, (title, against) in enumerate(COLUMNS):
        own = [row for row in rows if row["against"] in against]
        for line, quantity in enumerate(("ms", "MiB")):
            _growth(axes[line][column], own, quantity, slopes)
        axes[0][column].set_title(title)
        axes[1][column].set_xlabel(" · ".join(against))
    workers = [row for row in rows if row["against"] == "workers"]
    _workers(axes[0][-1], workers, "ms", lambda ms: 1e6 / ms)
    _workers(axes[1][-1], workers, "MiB", lambda held: held)
    axes[0][-1].set_title("Loader: images/s, MiB")
    axes[1][-1].set_xlabel("workers asked for")
    axes[0][0].set_ylabel("time, ms")
    axes[1][0].set_ylabel("memory, MiB")
    handles, names = axes[0][0].get_legend_handles_labels()
    own = axes[0][-1].get_legend_handles_labels()
    figure.legend(
        [*handles, *own[0]],
        [*names, *own[1]],
        loc="outside lower center",
        ncols=len(names) + len(own[1]),
        title="at the end of a line: its exponent, fitted to the four points",
        title_fontsize=8,
    )


def _growth(
    ax: Axes, rows: Sequence[Row], quantity: str, slopes: Mapping[tuple[str, str, str], float]
) -> None:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["against"]), []).append(row)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ends = []
    for (method, against), group in groups.items():
        x = [float(row["value"]) for row in group]
        y = [float(row[quantity]) for row in group]
        style = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 3.5}
        ax.plot(x, y, label=method, linewidth=1.5, **style)
        if quantity == "ms":
            low, high = ([float(row[end]) for row in group] for end in ("low", "high"))
            ax.fill_between(x, low, high, color=COLOURS[method], alpha=0.15, linewidth=0)
        ends.append((x[-1], y[-1], f"{slopes[method, against, quantity]:.1f}", COLOURS[method]))
    first, last = (pick(float(row["value"]) for row in rows) for pick in (min, max))
    _ticks(ax, first, last)
    low, high = _room_below(ax)
    _references(ax)
    _label_ends(ax, ends, (high / low) ** 0.055)


def _ticks(ax: Axes, first: float, last: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    doublings = round(math.log2(last / first))
    ticks = [first * 2**k for k in range(0, doublings + 1, 2 if doublings > 4 else 1)]
    ax.set_xticks(ticks, [_short(tick) for tick in ticks])
    ax.set_xlim(first / 1.3, last * (last / first) ** 0.14)
    low, high = ax.get_ylim()
    subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.minorticks_off()


def _room_below(ax: Axes) -> tuple[float, float]:
    """A decade at least, and a fifth of the panel below the lines for the slopes."""
    low, high = ax.get_ylim()
    middle, decades = math.sqrt(low * high), max(math.log10(high / low), 1.0)
    low, high = middle / 10 ** (decades / 2), middle * 10 ** (decades / 2)
    low /= 10 ** (0.3 * decades)
    ax.set_ylim(low, high)
    return low, high


def _references(ax: Axes) -> None:
    """Slopes to compare with, in the lower right corner."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    width, height = math.log(right / left), math.log(high / low)
    start = (0.7, 0.03)  # of the panel
    for power, name in SLOPES.items():
        steep = power * width / height
        dx = min(0.2, (0.11 if power == 3 else 0.17) / steep)
        end = (start[0] + dx, start[1] + dx * steep)
        ax.plot(
            *zip(start, end, strict=True),
            transform=ax.transAxes,
            color=PALE,
            linewidth=0.8,
            zorder=0.5,
        )
        ax.annotate(
            name,
            end,
            (-1.5 if power == 3 else 1.5, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=6.5,
            color=PALE,
            va="center",
            ha="right" if power == 3 else "left",
        )


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Words beside the last points; those of one x no closer than a factor `gap`."""
    placed: dict[float, float] = {}
    for x, y, text, colour in sorted(ends):
        place = max(y, placed.get(x, 0.0) * gap)
        placed[x] = place
        ax.annotate(
            text,
            (x, place),
            (4, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
            va="center",
        )


def _workers(ax: Axes, rows: Sequence[Row], quantity: str, convert: Callable) -> None:
    from matplotlib.ticker import FuncFormatter

    folder = [row for row in rows if "image_folder" in row["fixed"]]
    x = range(len(folder))
    y = [convert(float(row[quantity])) for row in folder]
    ax.plot(x, y, color=LOADER, marker="o", markersize=3.5, label="image_folder")
    if quantity == "ms":
        ends = [[convert(float(row[end])) for row in folder] for end in ("high", "low")]
        ax.fill_between(x, *ends, color=LOADER, alpha=0.15, linewidth=0)
    for row in rows:
        if row not in folder:
            rate = convert(float(row[quantity]))
            ax.axhline(rate, color=LOADER, linestyle="dashed", label="device (no workers)")
    ax.set_xticks(list(x), [f"{int(float(row['value']))}" for row in folder])
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.4g}"
