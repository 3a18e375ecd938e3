"""The page: everything on it is escaped, and nothing on it is fetched."""

import re
from html.parser import HTMLParser

import pytest

from solo_minent.report.collect import read_runs
from solo_minent.report.examples import examples_of
from solo_minent.report.page import Files, write_page

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&{{7*7}}"


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def page_of(runs, folder, features=False, notes=()):
    page = folder / "page.html"
    write_page(Files(page, folder / "page_files", ""), runs, list(notes), features, progress=False)
    return page.read_text(encoding="utf-8")


def test_words_from_files_stay_words(make_run, make_result, tmp_path, monkeypatch):
    results = [
        make_result(HOSTILE, HOSTILE, dataset=HOSTILE),
        make_result(target=HOSTILE, date=HOSTILE, metrics={HOSTILE: 5.0}),
    ]
    log = f'epoch,train_twist_loss,"monitor_{HOSTILE}"\n1,0.5,0.5\n'
    config = make_run("twist", results=results, log=log)
    (config.run_dir / "environment.json").write_text(
        f'[{{"commit": "<script>", "packages": {{"{HOSTILE[:8]}": "1"}}}}]'
    )

    def renamed(*arguments, **options):
        from dataclasses import replace

        found = examples_of(*arguments, **options)
        rows = [[replace(shown, label=HOSTILE) for shown in row] for row in found.queries]
        return replace(found, classes=[HOSTILE] * 10, queries=rows)

    monkeypatch.setattr("solo_minent.report.page.examples_of", renamed)
    (run,) = read_runs([config])
    from dataclasses import replace

    hostile = replace(run, label=HOSTILE)
    text = page_of([hostile, run], tmp_path, features=True, notes=[HOSTILE])
    page = Elements(text)
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "iframe", "object", "form", "a"})
    for tag, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    shown = "".join(page.text)
    assert HOSTILE in shown and "49" not in re.findall(r"&(\d+)", shown)
    assert not re.search(r"url\(|@import|https?://", text)
    assert all((tmp_path / "page_files").glob("*.png"))
    assert not [p for p in (tmp_path / "page_files").iterdir() if re.search("[<>'\"]", p.name)]


def test_the_table_has_every_number_with_what_makes_it_one(make_run, make_result, tmp_path):
    results = [
        make_result(
            "linear",
            "linear, Adam lr 0.01",
            metrics={"top1": 91.25, "top5": 99.5},
            checkpoint_sha256=True,
            seed=7,
        ),
        make_result(top1=88.125, date="2026-02-03"),
    ]
    (run,) = read_runs([make_run("twist", results=results)])
    shown = "".join(Elements(page_of([run], tmp_path)).text)
    for words in (
        "linear on digits, top1", "linear, Adam lr 0.01", "91.25", "top5 99.50",
        f"weights {run.weights[:8]}seed 7, 2026-01-311,438 train / 359 test",
        "88.12", "no checkpointseed 0, 2026-02-03", "measured on other weights",
    ):  # fmt: skip
        assert words in shown
    assert shown.count("measured on other weights") == 1


def test_differences_of_the_runs_are_marked(make_run, tmp_path):
    runs = read_runs([make_run("twist"), make_run("twist", "name=b", "optimizer.lr=0.5")])
    text = page_of(runs, tmp_path)
    marked = re.findall(r'<tr class="differs"><th scope="row">([^<]*)', text)
    assert marked[:2] == ["name", "optimizer.lr"]
    assert "What tells the runs apart" in text
    alone = page_of(runs[:1], tmp_path)
    assert 'differs"' not in alone and "What tells the runs apart" not in alone


@pytest.mark.parametrize("classes", [20, 21])
def test_many_classes_make_a_list_of_confusions(classes, make_run, tmp_path, monkeypatch):
    from dataclasses import replace

    import numpy as np

    def many(*arguments, **options):
        found = examples_of(*arguments, **options)
        counts = np.eye(classes, dtype=int) * 3
        counts[2, 5] = 4
        return replace(found, counts=counts, classes=[f"class {c}" for c in range(classes)])

    monkeypatch.setattr("solo_minent.report.page.examples_of", many)
    text = page_of(read_runs([make_run("twist")]), tmp_path, features=True)
    assert ("confusion matrix: the rows" in text) == (classes == 20)
    assert "<tr><td>class 2</td><td>class 5</td><td>4 of 7</td></tr>" in text


def test_pca_says_why_it_is_not_umap(make_run, tmp_path):
    text = page_of(read_runs([make_run("twist")]), tmp_path, features=True)
    assert "PCA, as umap-learn is not installed" in text
