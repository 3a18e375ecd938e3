"""What is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from solo_minent import host

REQUIRED = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "hydra-core",
    "safetensors",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "rich",
    "einops",
    "scipy",
    "psutil",
    "jinja2",
)
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110")  # one of them
OPTIONAL = ("umap-learn", "h5py", "pycocotools")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: state is ok, optional (not installed, not needed) or missing."""

    what: str
    found: str
    state: str
    fix: str = ""


def examine() -> list[Finding]:
    """Looks at interpreter, packages, solo-learn, accelerator and DALI; changes nothing."""
    findings = [Finding("python", platform.python_version(), "ok")]
    for package in REQUIRED:
        found = _version(package)
        fix = "" if found else f"pip install {package}"
        findings.append(Finding(package, found or "-", "ok" if found else "missing", fix))
    findings.append(_torchvision_works())
    findings.append(_host())
    findings.append(_accelerator())
    findings.append(_dali())
    for package in OPTIONAL:
        found = _version(package)
        fix = "" if found else f"pip install {package}"
        findings.append(Finding(package, found or "-", "ok" if found else "optional", fix))
    return findings


def environment() -> dict[str, object]:
    """Versions, code and hardware of this run, for `environment.json`."""
    import torch

    from solo_minent import __version__

    names = [*REQUIRED, *DALI, *OPTIONAL]
    return {
        "solo_minent": __version__,
        "commit": _commit(),
        "solo_learn": {"host": host.HOST, "version": host.VERSION},
        "packages": {name: _version(name) for name in names if _version(name)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torchvision_works() -> Finding:
    if not (_version("torch") and _version("torchvision")):
        return Finding("torch with torchvision", "-", "missing", "bash scripts/setup.sh")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        fix = "install a pair that belongs together, see scripts/constraints.txt"
        return Finding("torch with torchvision", reason, "missing", fix)
    return Finding("torch with torchvision", "they fit", "ok")


def _host() -> Finding:
    try:
        return Finding("solo-learn", f"{host.VERSION} ({host.HOST})", "ok")
    except host.SoloLearnMissingError:
        spec = importlib.util.find_spec("solo")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        found = f"another package `solo`: {', '.join(folders)}" if folders else "-"
        return Finding("solo-learn", found, "missing", host.INSTALL)


def _dali() -> Finding:
    found = [f"{package} {_version(package)}" for package in DALI if _version(package)]
    if found:
        return Finding("DALI", ", ".join(found), "ok")
    return Finding("DALI", "-", "optional", f"pip install {DALI[0]}")


def _accelerator() -> Finding:
    if _version("torch") is None:
        return Finding("accelerator", "-", "missing", "bash scripts/setup.sh")
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("accelerator", f"CUDA {torch.version.cuda}: {names}", "ok")
    fix = "" if shutil.which("nvidia-smi") is None else "install a torch that fits the driver"
    return Finding("accelerator", f"CPU, {os.cpu_count()} cores", "optional", fix)


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, if it is one; -dirty: its code was changed.

    What runs add to the checkout besides, such as models of the zoo, is no code.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commit = git("describe", "--always").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "solo_minent").returncode
    return (commit + ("-dirty" if changed else "")) or None


def print_findings() -> bool:
    """Prints the examination as a table; whether everything that is needed is there."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "found", "state", "what mends it")
    styles = {"ok": "green", "optional": "yellow", "missing": "red"}
    findings = examine()
    for f in findings:
        state = f"[{styles[f.state]}]{f.state}[/]"
        table.add_row(f.what, escape(f.found), state, escape(f.fix))
    Console().print(table)
    return all(f.state != "missing" for f in findings)
