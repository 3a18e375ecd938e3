"""Known advisories against the pinned stack and against the lower bounds of setup.py, offline.

    python scripts/audit.py

Exit status 1 if a pin or a bound lets in what an advisory of scripts/advisories.csv affects, and
what is affected reaches this package. scripts/audit.sh asks the vulnerability service as well.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"  # that the pins are for


def lines(path: Path) -> list[Requirement]:
    """Requirements of a constraints file for that Python."""
    found = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return _applying(Requirement(line) for line in found if line)


def bounds(setup: Path) -> list[Requirement]:
    """All requirements in setup.py, those of its extras as well; the file is not run."""
    found: list[str] = []
    for node in ast.walk(ast.parse(setup.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            found += ast.literal_eval(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS":
            found += [r for extra in ast.literal_eval(node.value).values() for r in extra]
    return _applying(Requirement(line) for line in found)


def _applying(requirements) -> list[Requirement]:
    environment = {"python_version": PYTHON, "platform_system": "Linux"}
    return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]


def lowest(requirement: Requirement) -> str | None:
    """The bound of `>=`, or the version of `==`."""
    found = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return found[0] if len(found) == 1 else None


def admits(requirement: Requirement, affected: SpecifierSet) -> str | None:
    """A version that a requirement lets in although it is affected; None without one.

    Those are tried that the requirement and the advisory name: affected are whole ranges.
    """
    named = re.findall(r"\d[\w.]*", f"{requirement.specifier} {affected}")
    both = [v for v in named if requirement.specifier.contains(v) and affected.contains(v)]
    return both[0] if both else None


def audit(advisories: Path, pinned: Path, setup: Path) -> list[tuple[str, ...]]:
    """(id, package, where, version, verdict) of each advisory that a pin or a bound lets in."""
    found = []
    with open(advisories, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = [(pinned.name, r) for r in lines(pinned)] + [(setup.name, r) for r in bounds(setup)]
    for row in rows:
        affected = SpecifierSet(row["affected"])
        for where, requirement in places:
            if canonicalize_name(requirement.name) != canonicalize_name(row["package"]):
                continue
            version = admits(requirement, affected)
            if version is not None:
                verdict = "AFFECTED" if row["reaches"] == "yes" else row["reaches"]
                found.append((row["id"], row["package"], where, version, verdict, row["source"]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--advisories", type=Path, default=ROOT / "scripts" / "advisories.csv")
    parser.add_argument("--pinned", type=Path, default=ROOT / "scripts" / "constraints.txt")
    parser.add_argument("--setup", type=Path, default=ROOT / "setup.py")
    options = parser.parse_args()
    found = audit(options.advisories, options.pinned, options.setup)
    for row in found:
        print("{:<24} {:<20} {:<16} {:<8} {}\n    {}".format(*row))
    bad = sum(row[4] == "AFFECTED" for row in found)
    print(f"[audit] {bad} affected, {len(found) - bad} that do not reach this package")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
