"""scripts/zoo/train_cifar10.sh: what it runs, in pieces, and what is left when it stops."""

import os
import subprocess
from pathlib import Path

import pytest

from solo_minent.cli.configs import one_config
from solo_minent.cli.parser import parse
from solo_minent.methods import available

SCRIPT = Path(__file__).parents[2] / "scripts" / "zoo" / "train_cifar10.sh"
PROGRAM = """#!/bin/sh
echo "$*" >> {calls}
case $1 in pretrain) exit "${{PRETRAIN_EXIT:-0}}" ;; esac
"""
TIMEOUT = """#!/bin/sh
echo "$*" | cut -d' ' -f1-5 >> {limits}
shift 5
exec "$@"
"""


@pytest.fixture
def train(tmp_path):
    """Runs the script with programs that write down what they are asked; returns it and calls."""
    calls, limits = tmp_path / "calls", tmp_path / "limits"
    for name, text in (("solo-minent", PROGRAM), ("timeout", TIMEOUT)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(calls=calls, limits=limits))
        program.chmod(0o755)

    def run(*arguments, **environment):
        calls.unlink(missing_ok=True)
        limits.unlink(missing_ok=True)
        given = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SOLO_MINENT": str(tmp_path / "bin" / "solo-minent"),
            "OUT": str(tmp_path / "runs"),
            "ZOO": str(tmp_path / "zoo"),
            "DEVICE": "cuda",
            "COMPILE": "true",
        }
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env={**os.environ, **given, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = [path.read_text().splitlines() if path.exists() else [] for path in (calls, limits)]
        return done, *lines

    return run


def composed(line):
    return one_config(parse(line.split()))


def test_every_method_is_trained_evaluated_and_added(train, tmp_path):
    done, calls, limits = train("data.root=/data")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls] == ["pretrain", "knn", "linear", "zoo"] * 4
    methods = ["minent", "mec", "twist", "corinfomax"]
    assert set(methods) == set(available())
    for method, (pretrain, knn, linear, add) in zip(
        methods, [calls[i : i + 4] for i in range(0, 16, 4)], strict=True
    ):
        config = composed(pretrain)
        folder = tmp_path / "runs" / "cifar10" / method / "zoo-0"
        assert (config.method, config.run_dir, config.seed) == (method, folder, 0)
        assert (config.backbone.name, config.max_epochs, config.compile) == ("resnet18", 1000, True)
        assert (config.data.format, config.precision) == ("device", "bf16-mixed")
        assert (
            knn == f"knn {folder} data.root=/data" and linear == f"linear {folder} data.root=/data"
        )
        options = parse(add.split())
        assert (options.id, options.float16) == (f"{method}-resnet18-cifar10", True)
        assert options.words == [str(folder), "data.root=/data"] and options.hours >= 0
        assert options.zoo == str(tmp_path / "zoo")
    assert all(limit.startswith("--foreground --preserve-status --signal=TERM") for limit in limits)
    assert all(500 < int(limit.split()[-1]) <= 510 for limit in limits)


@pytest.mark.parametrize("method", available())
def test_on_a_cpu_it_is_a_narrow_backbone_and_says_so(method, train):
    done, calls, _ = train("data.root=/data", DEVICE="cpu", METHODS=method, EPOCHS="3")
    assert done.returncode == 0, done.stderr
    config, options = composed(calls[0]), parse(calls[3].split())
    assert (config.method, config.max_epochs, config.data.train_images) == (method, 3, None)
    assert config.backbone.name == "timm:resnet10t" and not config.compile
    assert (options.id, options.float16) == (f"{method}-resnet10-cifar10-cpu", True)


@pytest.mark.parametrize("status", ["75", "143"])  # saved; stopped before there was anything
def test_it_stops_in_time_and_goes_on(status, train, tmp_path):
    done, calls, _ = train("data.root=/data", METHODS="minent mec", PRETRAIN_EXIT=status)
    assert done.returncode == 75 and "minent is being trained" in done.stderr
    assert [call.split()[0] for call in calls] == ["pretrain"]
    folder = tmp_path / "runs" / "cifar10" / "minent" / "zoo-0"
    seconds = folder / "seconds"
    assert seconds.read_text().strip().isdigit()
    seconds.write_text("1800\n")
    done, calls, _ = train("data.root=/data", METHODS="minent mec", MINUTES="0")
    assert done.returncode == 0 and len(calls) == 8
    assert 0.5 <= parse(calls[3].split()).hours < 0.51
    done, calls, _ = train("data.root=/data", METHODS="minent mec")
    assert (done.returncode, calls) == (0, [])


def test_without_time_nothing_is_begun(train):
    done, calls, _ = train("data.root=/data", MINUTES="0.1")
    assert done.returncode == 75 and calls == [] and "minent has not been trained" in done.stderr
    done, calls, _ = train("data.root=/data", MINUTES="2")
    assert done.returncode == 75 and "minent is trained and not evaluated" in done.stderr
    assert [call.split()[0] for call in calls] == ["pretrain"]


def test_a_run_that_fails_ends_it(train):
    done, calls, _ = train("data.root=/data", PRETRAIN_EXIT="2")
    assert done.returncode == 2 and len(calls) == 1


def test_another_seed_is_a_row_of_results(train):
    done, calls, _ = train("data.root=/data", METHODS="mec", SEED="3")
    assert done.returncode == 0 and composed(calls[0]).seed == 3
    options = parse(calls[3].split())
    assert options.results_only and not options.float16 and options.id == "mec-resnet18-cifar10"


def test_data_is_prepared_where_none_is_named(train):
    done, calls, _ = train(METHODS="mec")
    assert done.returncode == 0
    assert calls[0].startswith("prepare cifar10 --root ")
    root = calls[0].split()[-1]
    assert composed(calls[1]).data.root == root and f"data.root={root}" in calls[2]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"METHODS": "simclr"}, "error: method is unknown: simclr."),
        ({"METHODS": "mec $(touch pwned)"}, "error: method is unknown: $(touch."),
        ({"MINUTES": "soon"}, "error: MINUTES, EPOCHS or SEED is no number"),
        ({"MINUTES": '1); system("touch pwned"'}, "error: MINUTES, EPOCHS or SEED is no number"),
        ({"EPOCHS": "0"}, "error: MINUTES, EPOCHS or SEED is no number"),
        ({"SEED": "-1"}, "error: MINUTES, EPOCHS or SEED is no number"),
    ],
)
def test_bad_words_end_with_one_line(environment, words, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, calls, _ = train("data.root=/data", **environment)
    assert done.returncode == 2 and calls == []
    assert done.stderr.startswith(words) and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "pwned").exists()
