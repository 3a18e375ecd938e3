"""The performance section of README.md, from the csv files that `solo-minent bench` wrote.

    python scripts/performance.py

Reads zoo/results/bench-*.csv and, of a GPU, zoo/results/gpu/bench-*.csv; of several machines or
commits it says which figures are whose. A goal that was not reached needs its reason in
zoo/results/performance_notes.yaml (`<goal>_<cpu or cuda>: why`); without one nothing is written.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from solo_minent.bench.goals import (  # noqa: E402
    DEVICES,
    FILES,
    GOALS,
    NOTES,
    PICTURE,
    Result,
    read_goals,
    read_rows,
)
from solo_minent.errors import UserError  # noqa: E402
from solo_minent.files import write_text  # noqa: E402

RESULTS = ROOT / "zoo" / "results"
README = ROOT / "README.md"
BEGIN = "<!-- performance: made by scripts/performance.py, from zoo/results/bench-*.csv -->"
END = "<!-- /performance -->"
PACKAGES = ("torch", "lightning")
PEERS = {"barlow_twins": "Barlow Twins", "vicreg": "VICReg"}


def section(results: Path) -> str:
    """The section as Markdown.

    Raises:
        UserError: a csv is damaged or of a smoke test, a goal unreached without a reason.
    """
    folders = [results, results / "gpu"]
    for file in (folder / name for folder in folders for name in FILES.values()):
        rows = read_rows(file)
        if any(row.get("sizes") == "tiny" for row in rows):
            raise UserError(
                f"results are of a smoke test: {file} (--tiny). Figures need full sizes. Measure "
                "again without --tiny."
            )
        try:
            [_machine(row, row.get("device", "cpu")) for row in rows]
        except (IndexError, KeyError, SyntaxError, TypeError, ValueError) as error:
            raise UserError(
                f"results are damaged: {file} ({type(error).__name__}: {error}). A csv that "
                "solo-minent bench wrote was expected. Measure again."
            ) from error
    found = read_goals(folders)
    for result in found:
        if result.reached is False and not result.note:
            raise UserError(
                f"goal is not reached and no reason is given: {result.key} ({result.measured}). "
                f"What profiling found is needed. Add a line {result.key}: … to {results / NOTES}."
            )
    parts = [
        "Ratios in one run: both sides take turns, medians of n pairs, lowest and highest pair in "
        "brackets. A bold figure misses its goal.",
        _machines(folders),
        _goals(found),
        _unreached(found),
        _peers(folders),
        _growth(folders, results),
    ]
    return "\n".join(f"{part}\n" for part in parts if part)


def _machines(folders: list[Path]) -> str:
    """A line for each machine and number of pairs, with the files that are of it."""
    lines = []
    for device, word in DEVICES.items():
        seen: dict[str, list[str]] = {}
        for name, file in FILES.items():
            for folder in folders:
                rows = [r for r in read_rows(folder / file) if r.get("device", "cpu") == device]
                if rows:
                    for where in dict.fromkeys(
                        f"{_machine(row, device)}, n = {_turns(row)}" for row in rows
                    ):
                        seen.setdefault(where, []).append(name)
                    break
        lines += [f"- {word}: {where}: {', '.join(names)}" for where, names in seen.items()]
        if not seen:
            lines.append(f"- {word}: not measured yet")
    return "\n".join(lines)


def _machine(row: dict[str, str], device: str) -> str:
    packages = ast.literal_eval(row["packages"])
    versions = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
    versions.append(f"solo-learn {ast.literal_eval(row['solo_learn'])['version']}")
    hardware = f"{row['cpus']} cores ({row['cpu']}, {row['threads']} threads)"
    if device == "cuda":
        hardware = f"{ast.literal_eval(row['gpus'])[0]}, {hardware}"
    commit = f"commit {row['commit']}" if row["commit"] else "commit not recorded"
    return f"{hardware}, Python {row['python']}, {', '.join(versions)}, {commit}"


def _turns(row: dict[str, str]) -> str:
    return row.get("pairs") or row.get("repeats") or row["rounds"]


def _goals(found: list[Result]) -> str:
    lines = ["| goal | to reach | CPU | GPU |", "|---|---|---|---|"]
    for goal in GOALS:
        own = {result.device: result for result in found if result.goal is goal}
        limits = {DEVICES[device]: goal.limit(device) for device in own}
        if len(set(limits.values())) == 1:
            limit = next(iter(limits.values()))
        else:
            limit = ", ".join(f"{word} {text}" for word, text in limits.items())
        cells = [_cell(own[device]) if device in own else "" for device in DEVICES]
        lines.append(f"| {goal.name} | {limit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Result) -> str:
    return f"**{result.measured}**" if result.reached is False else result.measured


def _unreached(found: list[Result]) -> str:
    missed = [result for result in found if result.reached is False]
    if not missed:
        return ""
    lines = [f"- {r.goal.name}, {DEVICES[r.device]}: {r.note}" for r in missed]
    return "\n".join(["Not reached:", "", *lines])


def _peers(folders: list[Path]) -> str:
    """One sentence a device: own steps over those of solo-learn's methods."""
    lines = []
    for device, word in DEVICES.items():
        for folder in folders:
            rows = [r for r in read_rows(folder / FILES["step"]) if r["device"] == device]
            if rows:
                lines.append(_steps(word, rows))
                break
    return "\n".join(lines)


def _steps(word: str, rows: list[dict[str, str]]) -> str:
    faster: dict[str, list[str]] = {}
    for row in rows:
        if row["side"] in PEERS:
            value, low, high = (float(row[c]) for c in ("ratio", "ratio low", "ratio high"))
            faster.setdefault(row["method"], []).append(f"{value:.2f} ({low:.2f} to {high:.2f})")
    first = rows[0]
    texts = [f"`{method}` {' and '.join(own)}" for method, own in faster.items()]
    return (
        f"Speed of a whole step over that of solo-learn's {' and '.join(PEERS.values())} on the "
        f"{word} ({first['backbone']}, batch {first['batch']}, precision {first['precision']}): "
        f"{', '.join(texts)}."
    )


def _growth(folders: list[Path], results: Path) -> str:
    files = [folder / FILES["growth"] for folder in folders]
    rows = next((rows for rows in map(read_rows, files) if rows), [])
    if not rows:
        return "Growth with batch, width and training set: not measured yet."
    from solo_minent.bench.growth import WHY, exponents

    device = rows[0]["device"]
    slopes = exponents(row for row in rows if row["device"] == device)
    lines = [
        f"How time and memory grow, on the {DEVICES[device]} (exponent fitted to four points, in "
        "brackets that of the last doubling):",
        "",
        "| | time | memory | where it stops, and why |",
        "|---|---|---|---|",
    ]
    for method, why in WHY.items():
        cells = [
            ", ".join(
                f"{e.against}: {e.slope:.1f} ({e.last:.1f})"
                for e in slopes
                if e.method == method and e.quantity == quantity
            )
            for quantity in ("ms", "MiB")
        ]
        lines.append(f"| {method} | {cells[0]} | {cells[1]} | {why} |")
    picture = next((f.with_name(PICTURE) for f in files if f.with_name(PICTURE).is_file()), None)
    if picture:
        where = Path("zoo/results") / picture.relative_to(results)
        words = "Time and memory of losses, kNN and loader against batch, width, set and workers"
        lines += ["", f"![{words}]({where.as_posix()})"]
    return "\n".join(lines)


def into(readme: Path, text: str) -> None:
    """Puts the section between its marks in a file.

    Raises:
        UserError: the marks are not there.
    """
    before = readme.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(
            f"place of the section is missing: {readme}. Lines {BEGIN} and {END} mark it. Add them."
        )
    write_text(readme, f"{head}{BEGIN}\n{text}{END}{tail}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    try:
        text = section(options.results)
        into(options.readme, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
