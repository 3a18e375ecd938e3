"""The table of versions that the tests ran on: a record of runs, and README.md's table from it.

    python scripts/compatibility.py record oldest tests.xml "bash scripts/test.sh --oldest"
    python scripts/compatibility.py table

`record` is run by scripts/test.sh, in the environment that ran the tests.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "zoo" / "results" / "compatibility.csv"
README = ROOT / "README.md"
BEGIN = "<!-- compatibility: made by scripts/test.sh, from zoo/results/compatibility.csv -->"
END = "<!-- /compatibility -->"
PACKAGES = {  # column: name on PyPI
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "timm": "timm",
    "DALI": "nvidia-dali-cuda130",
    "solo-learn": "solo-learn",
}
STACKS = ("oldest", "tested", "latest")
COLUMNS = ["stack", "date", "python", *PACKAGES, "passed", "failed", "command"]


def counts(junit: Path) -> tuple[int, int]:
    """Passed and failed tests of pytest's XML; an error is a failure, a skipped test neither."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    return total - failed - errors - skipped, failed + errors


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def read(record: Path) -> list[dict[str, str]]:
    if not record.is_file():
        return []
    with open(record, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(record: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (STACKS.index(row["stack"]), row["python"])))
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(text.getvalue(), encoding="utf-8")


def add(record: Path, stack: str, junit: Path, command: str) -> dict[str, str]:
    """Puts a run in the place of the last one of its stack and Python."""
    passed, failed = counts(junit)
    row = {
        "stack": stack,
        "date": datetime.date.today().isoformat(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{column: installed(package) for column, package in PACKAGES.items()},
        "passed": str(passed),
        "failed": str(failed),
        "command": command,
    }
    others = [r for r in read(record) if (r["stack"], r["python"]) != (stack, row["python"])]
    write(record, [*others, row])
    return row


def table(record: Path) -> str:
    """The record as Markdown."""
    rows = read(record)
    if not rows:
        return "No run is recorded yet.\n"
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [f"`{row[c]}`" if c == "command" else row[c] for c in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def into(readme: Path, text: str) -> bool:
    """Puts the table between its marks in a file; whether they are there."""
    before = readme.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        return False
    after = f"{head}{BEGIN}\n{text}{END}{tail}"
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--readme", type=Path, default=README)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("record", help="add a run to the record")
    adding.add_argument("stack", choices=STACKS)
    adding.add_argument("junit", type=Path)
    adding.add_argument("tested_by")
    commands.add_parser("table", help="print the table, and put it into README.md")
    options = parser.parse_args()
    if options.command == "record":
        row = add(options.record, options.stack, options.junit, options.tested_by)
        print(f"[test] {row['passed']} passed, {row['failed']} failed, into {options.record}")
    text = table(options.record)
    if options.command == "table":
        print(text, end="")
    if not into(options.readme, text):
        print(f"error: {options.readme} has no place for it: {BEGIN} … {END}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
