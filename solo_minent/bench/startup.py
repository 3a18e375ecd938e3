"""How long a command takes to begin, and what it imports that it was not asked for."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from solo_minent.console import progress_bar
from solo_minent.errors import UserError

# Each takes a good part of a second, and a command that was not asked for it needs none of them.
HEAVY = (
    "umap",
    "numba",
    "wandb",
    "nvidia.dali",
    "seaborn",
    "matplotlib",
    "tensorboard",
    "h5py",
    "sklearn",
    "torchvision.models.detection",
    "solo_minent.evaluation.detect",
    "solo_minent.evaluation.umap",
    "solo_minent.report",
    "solo_minent.data.dali",
)
NEEDED = {"first step of digits/minent": ("sklearn",)}  # it holds the images
# What they import themselves, whoever imports them.
LIBRARIES = "import lightning.pytorch, timm, torchvision"

_TELL = (
    "import json, sys, time;"
    f"heavy = [name for name in {HEAVY!r} if name in sys.modules];"
    "print(json.dumps({'at': time.time(), 'modules': len(sys.modules), 'heavy': heavy}));"
)
_HELP = f"""
from solo_minent.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
{_TELL}
"""
# Interrupted after the first step, the command ends its workers.
_FIRST_STEP = f"""
import sys
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

def told(*_):
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    {_TELL}
    raise KeyboardInterrupt

register_optimizer_step_post_hook(told)
from solo_minent.cli import main
main(["pretrain", *sys.argv[1:]])
"""


def bench_startup(repeats: int = 5, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Wall seconds from the start of a process to what the user waits for, commands in turn.

    Files are read once before the clock starts. The first step is the first update of the weights
    of `solo-minent pretrain --recipe digits/minent`, after its kNN of the untrained network.

    Args:
        repeats: of each command.
        overrides: of the digits run, such as accelerator=cpu.

    Returns:
        Rows with columns: what ("solo-minent --help", "import solo_minent", "import
        solo_minent.plugin", "first step of digits/minent"), seconds (median), low, high, repeats,
        modules (imported by then), unasked (of `HEAVY`, with spaces between; empty is the goal),
        "by libraries" (of `HEAVY`, what `LIBRARIES` alone import), host (solo-learn's version).

    Raises:
        UserError: a command fails.
    """
    from solo_minent import host

    with tempfile.TemporaryDirectory() as folder:
        run = ["--recipe", "digits/minent", "max_epochs=1", f"output_dir={folder}", *overrides]
        sides: dict[str, list[str]] = {
            "solo-minent --help": [_HELP],
            "import solo_minent": [f"import solo_minent; {_TELL}"],
            "import solo_minent.plugin": [f"import solo_minent.plugin; {_TELL}"],
            "first step of digits/minent": [_FIRST_STEP, *run],
        }
        libraries = set(_run([f"{LIBRARIES}; {_TELL}"], "libraries")["heavy"])
        _run([_FIRST_STEP, *run, "name=first"], "first step")  # reads the files of them all
        found: dict[str, list[dict[str, Any]]] = {what: [] for what in sides}
        turns = [(turn, what) for turn in range(repeats) for what in sides]
        with progress_bar() as bar:
            for turn, what in bar.track(turns, description="startup"):
                named = [f"name=turn{turn}"] if len(sides[what]) > 1 else []
                found[what].append(_run([*sides[what], *named], what))
    return [_row(what, told, libraries, str(host.VERSION)) for what, told in found.items()]


def _run(command: Sequence[str], what: str) -> dict[str, Any]:
    """What a Python process says, with the seconds from its start until then."""
    start = time.time()
    done = subprocess.run([sys.executable, "-c", *command], capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith('{"at"')]
    if not told:
        said = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(
            f"{what} has failed before its clock stopped: {said}. It must run to be measured. "
            "See solo-minent doctor."
        )
    found = json.loads(told[0])
    return {**found, "seconds": found["at"] - start}


def _row(
    what: str, told: list[dict[str, Any]], libraries: set[str], version: str
) -> dict[str, Any]:
    seconds = [each["seconds"] for each in told]
    heavy = told[-1]["heavy"]
    needed = NEEDED.get(what, ())
    return {
        "what": what,
        "seconds": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "repeats": len(seconds),
        "modules": told[-1]["modules"],
        "unasked": " ".join(m for m in heavy if m not in libraries and m not in needed),
        "by libraries": " ".join(m for m in heavy if m in libraries),
        "host": version,
    }
