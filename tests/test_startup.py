"""A command imports what it needs, and is not kept waiting for the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TELL = "; import json, sys; print(json.dumps(sorted(sys.modules)))"
# One step of a run on digits, and all that comes before it and after it.
RUN = """
import sys
from solo_minent.cli import main
words = ["max_epochs=1", "optimizer.batch_size=1400", "accelerator=cpu", "data.num_workers=0"]
assert main(["pretrain", "--recipe", "digits/minent", *words, f"output_dir={sys.argv[1]}"]) == 0
import solo_minent.plugin
"""
UNUSED = ("umap", "numba", "wandb", "seaborn", "nvidia.dali", "tensorboard", "comet_ml")
OURS = (
    "evaluation.detect",
    "evaluation.umap",
    "evaluation.cluster",
    "report",
    "data.dali",
    "bench",
    "zoo",
)


def modules_after(code: str, *arguments: str, path: Path | None = None) -> set[str]:
    places = [str(path or ""), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-c", code.strip() + TELL.replace("; ", "\n", 1), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Modules after a run where all that solo-learn could import is installed."""
    place = tmp_path_factory.mktemp("installed")
    for name in ("umap", "wandb", "seaborn", "nvidia/dali"):
        if not is_there(name.replace("/", ".")):
            (place / name).mkdir(parents=True)
            (place / name / "__init__.py").write_text("")
    return modules_after(RUN, str(tmp_path_factory.mktemp("runs")), path=place)


def is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def test_a_digits_run_really_was_one(run):
    assert {"torch", "solo.methods", "solo_minent.training.guard"} <= run


@pytest.mark.parametrize("name", UNUSED)
def test_a_digits_run_imports_nothing_heavy_that_it_does_not_use(run, name):
    assert name not in run


@pytest.mark.parametrize("name", OURS)
def test_a_digits_run_imports_no_room_of_ours_that_it_does_not_use(run, name):
    assert f"solo_minent.{name}" not in run


@pytest.mark.parametrize("words", ["--help", "pretrain --help", "bench --help", "recipes"])
def test_words_need_no_library(words):
    code = f"""
from solo_minent.cli import main
try:
    main({words.split()!r})
except SystemExit:
    pass
"""
    loaded = modules_after(code)
    assert not loaded & {"torch", "numpy", "pandas", "lightning", "solo", "rich", "hydra"}
