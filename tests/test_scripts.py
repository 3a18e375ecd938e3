"""The bash scripts: what they run composes, and what they refuse is one line."""

import os
import subprocess
from pathlib import Path

import pytest

from solo_minent.cli import _config, _parse
from solo_minent.methods import available

SCRIPTS = Path(__file__).parents[1] / "scripts"
RUNS = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.glob("*/*.sh"))


def bash(script, *arguments):
    """Runs a script with `echo` in place of solo-minent."""
    command = ["bash", str(SCRIPTS / script), *arguments]
    environment = {**os.environ, "SOLO_MINENT": "echo"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def commands(script, *arguments):
    """(command, configuration) of each line that a script would run."""
    done = bash(script, *arguments)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, *rest = line.split()
        yield name, _config(_parse([name, *rest]))


@pytest.mark.parametrize("script", [s for s in RUNS if not s.endswith("cpu.sh")])
def test_a_script_pretrains_and_reports_its_recipe(script):
    first, second = commands(script, "max_epochs=3")
    assert (first[0], second[0]) == ("pretrain", "report")
    config = first[1]
    assert script == f"{config.data.dataset}/{config.method}.sh"
    assert config.max_epochs == 3 and config == second[1]


@pytest.mark.parametrize("method", available())
def test_the_cpu_run_composes_for_every_method(method):
    (_, config), _ = commands("cifar10/cpu.sh", method, "data.root=/data")
    assert (config.method, config.data.root) == (method, "/data")
    assert (config.data.train_images, config.optimizer.batch_size) == (5000, 128)
    assert config.backbone.name == "timm:resnet10t"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run.sh", [], "error: recipe is missing"),
        ("cifar10/cpu.sh", [], "error: method is missing"),
        ("quickstart.sh", ["--method"], "error: method is unknown: none"),
        ("quickstart.sh", ["--method", "simclr"], "error: method is unknown: simclr"),
    ],
)
def test_bad_arguments_end_with_one_line(script, arguments, message):
    done = bash(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_every_script_is_executable_and_strict():
    for path in SCRIPTS.rglob("*.sh"):
        assert os.access(path, os.X_OK), path
        assert "set -euo pipefail" in path.read_text(), path
