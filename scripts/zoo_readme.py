"""zoo/README.md, from zoo/models.yaml and the tables zoo/results/zoo-*.csv.

    python scripts/zoo_readme.py

`solo-minent zoo add` writes both. What others publish for the same data set stands beside it, from
zoo/results/published.csv, each row with its source.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from solo_minent.errors import UserError  # noqa: E402
from solo_minent.files import write_text  # noqa: E402
from solo_minent.zoo.index import read_index  # noqa: E402
from solo_minent.zoo.rows import read_rows  # noqa: E402
from solo_minent.zoo.schema import Entry, Metric  # noqa: E402

ZOO = ROOT / "zoo"
PUBLISHED = "published.csv"
NAMES = {"minent": "MinEnt", "mec": "MEC", "twist": "TWIST", "corinfomax": "CorInfoMax"}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "Digits", "stl10": "STL-10"}
HEAD = """\
# Model zoo

Made by `python scripts/zoo_readme.py` from [models.yaml](models.yaml) and [results](results);
change those, not this.
"""
NONE = """\
**There are no models yet.** `bash scripts/zoo/train_cifar10.sh` trains the four methods on CIFAR-10
and adds them; until then every number of this project is of a run that is not shipped.
"""
USE = """\
## Use

```bash
solo-minent zoo list                        # all models
solo-minent zoo info ID                     # files, hashes, protocol of every number, licence
solo-minent zoo download ID                 # or all; into SOLO_MINENT_CACHE
solo-minent zoo verify                      # hashes, headers, strict loading, numbers
solo-minent knn --recipe cifar10/minent --target ID data.root=/data/cifar10
```

```python
from solo_minent.zoo import load_backbone

model = load_backbone("ID")  # model.backbone (eval mode), model.transform, model.feature_dim
```

An id is taken wherever `--target` is. `solo_minent.zoo.create_model` and `list_models` are the same
in timm's words; for `torch.hub`, see `solo_minent/zoo/hubconf.py`. A file is looked for in this
folder, in the cache (`SOLO_MINENT_CACHE`), on the mirrors in `SOLO_MINENT_ZOO_URL`, then at the
urls of the index, and is kept only if size and sha256 are those of the index. `--offline` downloads
nothing.
"""


def readme(zoo: Path) -> str:
    """The page as Markdown.

    Raises:
        UserError: index or tables are damaged, or a row is of no model.
    """
    entries = read_index(zoo)
    rows = [row for path in _tables(zoo) for row in read_rows(path)]
    known = {entry.id for entry in entries if entry.ours}
    for row in rows:
        if row["model"] not in known:
            raise UserError(
                f"row is of no model: {row['model']} in {zoo}/results. The index has "
                f"{', '.join(sorted(known)) or 'none'}. Remove the row, or add the model."
            )
    ours = [entry for entry in entries if entry.ours]
    theirs = [entry for entry in entries if not entry.ours]
    parts = [HEAD]
    parts += [] if ours else [NONE]
    for dataset in dict.fromkeys(entry.dataset for entry in ours):
        parts.append(_dataset(zoo, dataset, [e for e in ours if e.dataset == dataset], rows))
    parts += [_theirs(theirs)] if theirs else []
    parts.append(USE)
    return "\n".join(parts)


def _tables(zoo: Path) -> list[Path]:
    return sorted((zoo / "results").glob("zoo-*.csv"))


def _dataset(zoo: Path, dataset: str, entries: list[Entry], rows: list[dict[str, str]]) -> str:
    lines = [
        "| model | method | backbone | epochs | batch | kNN | linear | online | hours | file |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        own = [row for row in rows if row["model"] == entry.id]
        network = f"{entry.backbone.name}, stem {entry.backbone.stem or 'its own'}"
        numbers = [_number(entry, own, name) for name in ("knn", "linear", "online")]
        hours = "" if entry.hours is None else f"{entry.hours:g}, {entry.hardware}"
        size = f"{entry.file.bytes / 1e6:.1f} MB, {entry.file.dtype}, {entry.licence}"
        epochs = f"{entry.epochs}"
        if entry.train_images is not None:
            epochs += f" of {entry.train_images:,} images"
        cells = [f"`{entry.id}`", _name(entry.method), network, epochs, entry.batch_size]
        lines.append(_line([*cells, *numbers, hours, size]))
    parts = [
        f"## {TITLES.get(dataset, dataset)}",
        "Accuracy in % on the held-out images, last epoch: of the file, then the mean ± standard "
        "deviation where several seeds ran.",
        "\n".join(lines),
        _protocols(entries),
        _published(zoo, dataset),
        _reproduce(zoo, entries),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(entry: Entry, rows: list[dict[str, str]], name: str) -> str:
    """What the file reaches, and the mean and spread of all seeds."""
    own = [f"{metric.top1:.2f}" for metric in entry.metrics if metric.evaluation == name][:1]
    values = [float(row[name]) for row in rows if row[name]]
    if len(values) > 1:
        mean, spread = statistics.mean(values), statistics.stdev(values)
        own.append(f"({mean:.2f} ± {spread:.2f}, {len(values)} seeds)")
    return " ".join(own)


def _protocols(entries: list[Entry]) -> str:
    """What the columns mean, once for all models that have it in common."""
    lines = []
    for name in ("knn", "linear", "online"):
        first = [[m for m in entry.metrics if m.evaluation == name][:1] for entry in entries]
        for words in dict.fromkeys(_words(metric) for each in first for metric in each):
            lines.append(f"- {'kNN' if name == 'knn' else name}: {words}")
    return "\n".join(lines)


def _words(metric: Metric) -> str:
    images = "" if metric.images is None else f"; {metric.images:,} images"
    return f"{metric.protocol}{images}"


def _published(zoo: Path, dataset: str) -> str:
    path = zoo / "results" / PUBLISHED
    if not path.is_file():
        return ""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    if not rows:
        return ""
    lines = ["| method | backbone | epochs | top-1 | top-5 | from |", "|---|---|---|---|---|---|"]
    keys = ("method", "backbone", "epochs", "top1", "top5")
    lines += [_line([*(row[k] for k in keys), f"[{row['by']}]({row['source']})"]) for row in rows]
    return (
        "What others state for the same data, as their own pages have it (solo-learn's does not "
        "name the protocol, and its weights are no longer to be had). None of it was measured "
        "here:\n\n" + "\n".join(lines)
    )


def _reproduce(zoo: Path, entries: list[Entry]) -> str:
    lines = [
        "To reproduce a row (`DATA` is `data.root=<folder>`; digits need none):",
        "",
        "```bash",
    ]
    for entry in entries:
        recipe = f"--recipe zoo/{entry.config}"
        lines += [
            f"# {entry.id}: commit {entry.commit}, {entry.date}, seed {entry.seed}, "
            f"{entry.precision}, {entry.hardware}",
            f"solo-minent knn {recipe} --target {entry.id} DATA",
            f"solo-minent linear {recipe} --target {entry.id} DATA",
            f"solo-minent pretrain {recipe} DATA name=again",
        ]
        if _went_on(zoo / str(entry.environment)):
            lines.append("# not the same training: that one went on from another run")
    return "\n".join([*lines, "```"])


def _went_on(path: Path) -> bool:
    """Whether a session of the training began with another run's checkpoint."""
    sessions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    words = [word for session in sessions for word in session.get("command", [])]
    return any(word.startswith("--resume-from") for word in words)


def _theirs(entries: list[Entry]) -> str:
    lines = [
        "## Models of others",
        "",
        "Not ours: trained and published by their authors, under their terms. Nothing of them is "
        "in this repository but name, address and hash.",
        "",
        "| model | method | data set | backbone | licence | page |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [f"`{entry.id}`", _name(entry.method), entry.dataset, entry.backbone.name]
        lines.append(_line([*cells, entry.licence, f"<{entry.page}>"]))
    return "\n".join(lines) + "\n"


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _line(cells: Sequence[object]) -> str:
    words = ("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(words)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zoo", type=Path, default=ZOO)
    options = parser.parse_args(arguments)
    try:
        write_text(options.zoo / "README.md", readme(options.zoo))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.zoo / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
