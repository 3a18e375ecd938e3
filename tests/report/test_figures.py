"""Pictures: which panels there are, that they show their data, and that words stay words."""

import base64
import re
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from solo_minent.report import figures
from solo_minent.report.collect import read_runs


@pytest.fixture
def runs(make_run):
    return read_runs([make_run("twist"), make_run("mec")])


def test_panels_are_the_columns_that_some_run_has(runs):
    assert [panel.column for panel in figures.curve_panels(runs)] == [
        "train_twist_loss",
        "train_mec_loss",
        "knn_acc1",
        "val_acc1",
        "lr",
        "train_twist_sharpness",
        "train_mec_coding_length",
    ]
    assert [panel.title for panel in figures.monitor_panels(runs)] == ["effective rank"]
    runs[0].log["monitor_effective_rank"] = runs[1].log["monitor_effective_rank"] = np.nan
    assert figures.monitor_panels(runs) == []


def test_a_method_with_many_terms_shows_its_monitors(make_run):
    terms = ",".join(f"train_minent_head_{i}" for i in range(8))
    log = f"epoch,train_minent_loss,train_minent_target_entropy,{terms}\n1{',0.5' * 10}\n"
    panels = figures.curve_panels(read_runs([make_run("minent", log=log)]))
    assert [p.column for p in panels] == ["train_minent_loss", "train_minent_target_entropy"]


def test_lines_are_the_log_in_the_colour_of_the_run(runs):
    panel = figures.Panel("kNN", "knn_acc1")
    (axis,) = figures.draw_panel(panel, runs).axes
    for number, (line, run) in enumerate(zip(axis.lines, runs, strict=True)):
        shown = run.log[["epoch", "knn_acc1"]].dropna().to_numpy()
        np.testing.assert_array_equal(line.get_xydata(), shown)
        assert to_hex(line.get_color()) == figures.colour(number)
    assert len({(figures.colour(i), figures.dash(i)) for i in range(40)}) == 40
    whole = figures.draw_panels(figures.curve_panels(runs), runs, "title")
    (legend,) = whole.legends
    assert [text.get_text() for text in legend.get_texts()] == ["twist/default", "mec/default"]
    assert len(whole.axes) == 7


def test_the_same_figure_is_the_same_file_in_two_themes(runs):
    panel = figures.Panel("$\\frac{$ <script>alert(1)</script> --> \u4e2d", "lr")
    before = dict(mpl.rcParams)
    first, second = (figures.svg_uris(lambda: figures.draw_panel(panel, runs)) for _ in range(2))
    assert first == second and first["light"] != first["dark"]
    assert dict(mpl.rcParams) == before
    svg = base64.b64decode(first["dark"].removeprefix("data:image/svg+xml;base64,")).decode()
    assert figures.INK[1] in svg and figures.INK[0] not in svg and "<script" not in svg
    assert not re.search(r"\b(?:href|src)=\"(?!#)", svg)


def test_png_is_written_whole(runs, tmp_path):
    path = tmp_path / "new" / "a.png"
    figures.save_png(path, lambda: figures.draw_panels(figures.curve_panels(runs), runs, "t"))
    with Image.open(path) as image:
        assert image.width > 1000 and len(image.convert("L").getcolors(256)) > 50
    assert list(path.parent.iterdir()) == [path]


def test_projection_shows_every_point_and_names_the_classes_at_their_medians():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(60, 2)), np.arange(60) % 3
    (axis,) = figures.draw_projection(points, labels, ["a", "$b", "c"]).axes
    offsets = axis.collections[0].get_offsets()
    assert sorted(map(tuple, offsets)) == sorted(map(tuple, points))
    for text, label in zip(axis.texts, range(3), strict=True):
        assert text.get_position() == tuple(np.median(points[labels == label], axis=0))
    assert [text.get_text() for text in axis.texts] == ["a", "$b", "c"]
    many = figures.draw_projection(points, np.arange(60), [str(i) for i in range(60)])
    assert len(many.axes[0].texts) == 0


def test_confusion_counts_are_written_into_the_cells():
    counts = np.array([[5, 0, 2], [0, 0, 0], [1, 0, 3]])
    (axis,) = figures.draw_confusion(counts, ["a", "b", "a very long class name"]).axes
    assert {(t.get_position()[::-1], t.get_text()) for t in axis.texts} == {
        ((0, 0), "5"), ((0, 2), "2"), ((2, 0), "1"), ((2, 2), "3"),
    }  # fmt: skip
    shares = axis.images[0].get_array()
    np.testing.assert_allclose(shares[0], [5 / 7, 0, 2 / 7])
    np.testing.assert_array_equal(shares[1], 0)  # a class without test images
    assert axis.get_yticklabels()[2].get_text() == "a very long c…"


def test_mosaic_frames_tell_classes():
    grey = Image.new("RGB", (8, 8), (120, 120, 120))
    sheet = figures.mosaic([[(grey, None), (grey, True), (grey, False)], [(grey, None)]], side=20)
    assert sheet.size == (3 * 34, 2 * 34)
    frames = [to_hex(np.array(sheet.getpixel((x * 34 + 5, 17))) / 255) for x in range(3)]
    assert frames == ["#ffffff", figures.SAME, figures.OTHER]
    assert sheet.getpixel((17, 17)) == (120, 120, 120)
    assert sheet.getpixel((34 + 5, 34 + 17)) == (255, 255, 255)


def test_small_images_keep_their_pixels():
    board = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    large = figures.fitted(board, 72)
    np.testing.assert_array_equal(np.asarray(large), np.asarray(board).repeat(9, 0).repeat(9, 1))
    assert figures.fitted(Image.new("RGB", (300, 100)), 72).size == (72, 72)
    head = "data:image/png;base64,"
    uri = partial(figures.image_uri, board)()
    assert base64.b64decode(uri.removeprefix(head)).startswith(b"\x89PNG")
