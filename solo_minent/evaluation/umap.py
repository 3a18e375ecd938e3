"""Pictures of features: UMAP or PCA in the plane, one point an image, coloured by class."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from solo_minent.allowed import check_one_of
from solo_minent.config import check_writable
from solo_minent.data.loaders import image_loader, labelled_images
from solo_minent.data.transforms import eval_transform, normalization
from solo_minent.errors import UserError
from solo_minent.evaluation.features import device_of, extract_features
from solo_minent.evaluation.targets import Target, with_normalization
from solo_minent.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from solo_minent.data.images import ImageSet
    from solo_minent.schema import RunConfig

METHODS = ("umap", "pca")
SPLITS = ("train", "test")
LIMIT = 5000  # images of a picture
NEIGHBORS, MIN_DISTANCE = 15, 0.1  # umap-learn's defaults
FEWEST = {"umap": 5, "pca": 2}
# Petroff 2021, "Accessible color sequences for data visualization", arXiv 2107.02270: ten colours
# that stay apart under colour-blindness. With a mark of its own each, the greys do as well.
COLORS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6") + (
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKS = ("o", "^", "s", "D")
NAMED = 20  # classes until colour and mark repeat
LABELLED = 10  # classes until names would cover the picture
LONGEST, SHORT = 28, 14  # letters of a name in the legend and in the picture
EDGE = {"linewidths": 0.4, "edgecolors": "white"}


def project(features: ArrayLike | Tensor, method: str = "umap", seed: int = 0) -> np.ndarray:
    """Coordinates of features in the plane.

    Args:
        features: (N, D), finite, N >= 5 for umap and 2 for pca.
        method: `umap` (umap-learn, 15 neighbours or N - 1, minimum distance 0.1, Euclidean) or
            `pca` (scikit-learn).
        seed: of the embedding; the same seed gives the same picture.

    Returns:
        float32 (N, 2).

    Raises:
        UserError: another method, umap-learn that is not installed, features of another shape, too
            few or not finite.
    """
    check_one_of("--method", method, METHODS)
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    table = np.asarray(array, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] == 0 or len(table) < FEWEST[method]:
        raise UserError(
            f"features cannot be projected by {method}: shape {table.shape}. A table (N, D) of at "
            f"least {FEWEST[method]} images is needed. Take more images, or method pca."
        )
    if not np.isfinite(table).all():
        raise UserError(
            "features are not finite: NaN or infinity among them. The training has probably "
            "diverged. Evaluate a run whose loss is finite."
        )
    return (_umap if method == "umap" else _pca)(table, seed)


def plot_projection(
    config: RunConfig, target: Target, method: str = "umap", split: str = "test"
) -> Path:
    """Draws the features of a target, under the test transform, into the run folder.

    Args:
        config: of the run.
        target: what to look at.
        method: `umap` or `pca`.
        split: `train` or `test`; of more than 5,000 images a seeded subset is shown.

    Returns:
        `<method>.png`, with the target's kind in its name if that is not the trained run
        (`umap-random.png`), and the split if it is not test (`umap-train.png`).

    Raises:
        UserError: another method or split, umap-learn that is not installed, data that is missing
            or has no labels.
    """
    check_one_of("--method", method, METHODS)
    check_one_of("--split", split, SPLITS)
    if method == "umap":
        _import_umap()
    check_writable(config)
    images = labelled_images(config, split)
    every = len(images)
    if every > LIMIT:
        rows = np.random.default_rng(config.seed).choice(every, LIMIT, replace=False)
        images = images.select(np.sort(rows))
    loader = _loader(with_normalization(config, target), images)
    precision = config.evaluation.precision
    features, labels = extract_features(target.backbone, loader, device_of(config), precision)
    points = project(features, method, config.seed)
    shown = f"{len(points):,} of {every:,}" if every > LIMIT else f"all {every:,}"
    title = f"{config.method} on {config.data.dataset}"
    about = f"{_describe(method)} of {_features_of(target)}, {shown} {split} images"
    path = config.run_dir / f"{_stem(method, target, split)}.png"
    _draw(path, points, labels.numpy(), images.classes, (title, about), method)
    return path


def _import_umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise UserError(
            "umap-learn is not installed: method umap needs it. PCA does not. "
            "Run pip install 'solo-minent[umap]', or use method pca."
        ) from error
    return umap


def _umap(table: np.ndarray, seed: int) -> np.ndarray:
    import warnings

    umap = _import_umap()
    model = umap.UMAP(
        n_neighbors=min(NEIGHBORS, len(table) - 1),
        min_dist=MIN_DISTANCE,
        # Spectral starts need more images than this; PCA's never fail.
        init="pca" if len(table) < 2 * NEIGHBORS else "spectral",
        n_jobs=1,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Graphs of several parts are no error in a picture of clusters.
        warnings.filterwarnings("ignore", module=r"umap|sklearn")
        return np.asarray(model.fit_transform(table), dtype=np.float32)


def _pca(table: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    found = PCA(min(2, *table.shape), random_state=seed).fit_transform(table)
    # One feature has one component.
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1]))).astype(np.float32)


def _loader(config: RunConfig, images: ImageSet) -> Any:
    data = config.data
    transform = eval_transform(data.dataset, data.image_size, *normalization(data))
    # An evaluation is one process, with all of the workers.
    return image_loader(replace(config, devices=1), images, transform, config.evaluation.batch_size)


def _describe(method: str) -> str:
    return f"UMAP ({NEIGHBORS} neighbours)" if method == "umap" else "PCA"


def _features_of(target: Target) -> str:
    known = {"trained": "the trained backbone", "random": "the untrained backbone"}
    return known.get(target.kind, target.kind)


def _stem(method: str, target: Target, split: str) -> str:
    kind = "" if target.kind == "trained" else "-" + re.sub(r"[^\w.-]+", "-", target.kind)
    return method + kind + ("" if split == "test" else f"-{split}")


def _draw(
    path: Path,
    points: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    titles: tuple[str, str],
    method: str,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    size = float(np.clip(14000 / len(points), 8, 44))
    named = len(classes) <= NAMED
    if named:
        _draw_named(axes, points, labels, classes, size)
    else:
        axes.scatter(*points.T, c=labels, s=size, cmap="viridis", linewidths=0, alpha=0.8)
    about = titles[1] if named else f"{titles[1]}, coloured by class"
    axes.set_title(titles[0], loc="left", fontsize=15, fontweight="bold", pad=26)
    axes.text(0, 1.018, about, transform=axes.transAxes, fontsize=10, color="#555555")
    axis_name = "UMAP" if method == "umap" else "PC"
    axes.set_xlabel(f"{axis_name} 1", color="#555555")
    axes.set_ylabel(f"{axis_name} 2", color="#555555")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def _draw_named(
    axes: Axes, points: np.ndarray, labels: np.ndarray, classes: list[str], size: float
) -> None:
    """Points, a legend, and the names of few classes at the image nearest to their median."""
    from matplotlib.patheffects import withStroke

    # Mark by mark, each in an order that mixes the classes, so that none covers the others.
    order = np.random.default_rng(0).permutation(len(points))
    for number, mark in enumerate(MARKS):
        rows = order[labels[order] % len(MARKS) == number]
        colors = [_look(label)[0] for label in labels[rows]]
        axes.scatter(*points[rows].T, s=size, c=colors, marker=mark, **EDGE)
    words = {"parse_math": False, "path_effects": [withStroke(linewidth=3, foreground="white")]}
    for label, name in enumerate(classes):
        color, mark = _look(label)
        axes.scatter([], [], s=52, c=color, marker=mark, label=str(label), **EDGE)
        own = points[labels == label]
        if len(own) and len(classes) <= LABELLED:
            middle = own[np.square(own - np.median(own, axis=0)).sum(1).argmin()]
            place = {"ha": "center", "va": "center", "fontweight": "bold", "color": "#222222"}
            axes.text(*middle, _shortened(name, SHORT), fontsize=12, **place, **words)
    side = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
    legend = axes.legend(title="class", **side)
    # Only now: a label that begins with an underscore is left out of a legend.
    for text, name in zip(legend.get_texts(), classes, strict=True):
        text.set(text=_shortened(name, LONGEST), parse_math=False)


def _shortened(name: str, letters: int) -> str:
    # The name of a folder need not be valid text.
    name = name.encode("utf-8", "replace").decode()
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _look(label: int) -> tuple[str, str]:
    return COLORS[label % len(COLORS)], MARKS[label % len(MARKS)]
