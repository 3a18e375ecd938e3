"""The page: everything on it, and the template that lays it out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent import __version__
from solo_minent.config import differences
from solo_minent.errors import UserError
from solo_minent.files import write_text
from solo_minent.report import figures
from solo_minent.report.collect import Run
from solo_minent.report.examples import Examples, examples_of
from solo_minent.report.results import SHOWN_SHA, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("template.html")
THUMBNAIL = 72  # pixels
MATRIX_CLASSES = 20  # more make a list of confusions
PAIRS_BY_MATRIX = 5  # of that list, where the matrix is shown


@dataclass(frozen=True)
class Files:
    """page: the HTML file; folder: of its pictures; stem: in front of their names."""

    page: Path
    folder: Path
    stem: str

    def picture(self, what: str, run: Run | None = None, number: int = 0) -> Path:
        """`report.png` and `report_<what>.png` of one run; `<what>[-<number>-<run>].png` of many.

        `curves` of one run is `report.png`.
        """
        parts = [self.stem] if self.stem else []
        if not (self.stem and what == "curves"):
            parts.append(what)
        name = "_".join(parts)
        if run is not None and not self.stem:
            name += f"-{number}-{re.sub(r'[^A-Za-z0-9.]+', '-', run.label).strip('-')[:80]}"
        return self.folder / f"{name}.png"


def write_page(
    files: Files, runs: list[Run], notes: list[str], features: bool = True, progress: bool = True
) -> None:
    """Draws everything, writes the pictures and then the page.

    Args:
        files: where.
        runs: what.
        notes: sentences for the page.
        features: look at the features of trained runs.
        progress: show bars.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown, reasons = _examples(runs, progress) if features else ([], [])
    datasets = sorted({run.config.data.dataset for run in runs})
    names = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    title = f"{names} on {', '.join(datasets)}"
    context = {
        "title": title,
        "version": __version__,
        "runs": [_about(number, run, files) for number, run in enumerate(runs)],
        "table": table(runs),
        "curves": _curves(files, "curves", figures.curve_panels(runs), runs, title),
        "monitors": _curves(files, "monitors", figures.monitor_panels(runs), runs, title),
        "examples": [_pictures(files, *each) for each in shown],
        "features": features,
        "notes": [*notes, *reasons],
        "configs": _configs(runs),
        "environments": _side_by_side([_flat(run.environment) for run in runs]),
        "palette": figures.page_colours(),
        "same": figures.SAME,
        "other": figures.OTHER,
        "thumbnail": THUMBNAIL,
        "neighbours": max((len(row) for _, _, e in shown for row in e.queries), default=1) - 1,
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(files.page, environment.get_template(TEMPLATE.name).render(context))


def _examples(runs: list[Run], progress: bool) -> tuple[list[tuple[int, Run, Examples]], list[str]]:
    """What the features of each run show, and for the other runs why there is nothing."""
    shown, reasons = [], []
    for number, run in enumerate(runs):
        try:
            examples = examples_of(run.config, progress)
        except (UserError, ModuleNotFoundError) as error:
            reasons.append(f"{run.label} has no neighbours, map and confusions: {error}")
            continue
        shown.append((number, run, examples))
        if examples.no_queries:
            reasons.append(f"{run.label} has no neighbours: {examples.no_queries}")
    return shown, reasons


def _about(number: int, run: Run, files: Files) -> dict[str, Any]:
    """A run's line in the list of runs."""
    config = run.config
    done = int(run.log["epoch"].max())
    stem = f", {config.backbone.stem} stem" if config.backbone.stem else ""
    return {
        "label": run.label,
        "colour": number % len(figures.COLORS),
        "dash": figures.css_dash(number),
        "method": config.method,
        "dataset": config.data.dataset,
        "backbone": f"{config.backbone.name}{stem}",
        "epochs": f"{done}" if done >= config.max_epochs else f"{done} of {config.max_epochs}",
        "batch": f"{config.global_batch_size:,}",
        "seed": config.seed,
        "weights": run.weights,
        "short": run.weights and run.weights[:SHOWN_SHA],
        "folder": _relative(config.run_dir, files.page.parent),
    }


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _curves(
    files: Files, what: str, panels: list[figures.Panel], runs: list[Run], title: str
) -> list[dict[str, Any]]:
    """Panels as pictures for the page; all of them in one picture beside it."""
    if not panels:
        return []
    figures.save_png(files.picture(what), lambda: figures.draw_panels(panels, runs, title))
    return [
        {"title": panel.title, "uris": figures.svg_uris(_panel(panel, runs))} for panel in panels
    ]


def _panel(panel: figures.Panel, runs: list[Run]) -> Callable[[], Figure]:
    return lambda: figures.draw_panel(panel, runs)


def _pictures(files: Files, number: int, run: Run, examples: Examples) -> dict[str, Any]:
    """The examples of a run as the template takes them; its pictures are written."""

    def draw_map() -> Figure:
        return figures.draw_projection(examples.points, examples.point_labels, examples.classes)

    def draw_matrix() -> Figure:
        return figures.draw_confusion(examples.counts, examples.classes)

    figures.save_png(files.picture(examples.projection, run, number + 1), draw_map)
    matrix = None
    if len(examples.classes) <= MATRIX_CLASSES:
        figures.save_png(files.picture("confusion", run, number + 1), draw_matrix)
        matrix = figures.svg_uris(draw_matrix)
    rows = [[(shown.image, shown.same) for shown in row] for row in examples.queries]
    if rows:
        figures.save_image(files.picture("neighbours", run, number + 1), figures.mosaic(rows))
    return {
        "label": run.label,
        "colour": number % len(figures.COLORS),
        "dash": figures.css_dash(number),
        "queries": [
            [
                {
                    "uri": figures.image_uri(figures.fitted(shown.image, THUMBNAIL)),
                    "label": shown.label,
                    "same": shown.same,
                }
                for shown in row
            ]
            for row in examples.queries
        ],
        "map": figures.png_uri(draw_map),
        "projection": examples.projection,
        "points": len(examples.points),
        "matrix": matrix,
        "confused": examples.confused[: PAIRS_BY_MATRIX if matrix else None],
        "k": examples.k,
        "accuracy": examples.accuracy,
        "train": examples.train,
        "test": examples.test,
        "all_train": examples.all_train,
        "all_test": examples.all_test,
        "seed": run.config.seed,
        "short": (examples.weights or "")[:SHOWN_SHA],
    }


def _configs(runs: list[Run]) -> dict[str, Any]:
    """Every key side by side, and which of them tell the runs apart."""
    configs = [run.config for run in runs]
    rows = _side_by_side([_flat(asdict(config)) for config in configs])
    keys = {
        line.partition(": ")[0] for other in configs[1:] for line in differences(configs[0], other)
    }
    return {
        "rows": rows,
        "differing": [row for row in rows if row["key"] in keys],
        "keys": keys,
    }


def _side_by_side(tables: list[dict[str, str]]) -> list[dict[str, Any]]:
    keys = list(dict.fromkeys(key for each in tables for key in each))
    rows = []
    for key in keys:
        values = [each.get(key, "-") for each in tables]
        rows.append({"key": key, "values": values, "differs": len(set(values)) > 1})
    return rows


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, values as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return " ".join(value)
    return "null" if value is None else str(value)
