"""`solo-minent bench`: what each part writes, what all of them do together, what is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from solo_minent.bench import everything
from solo_minent.bench.everything import PARTS, Settings, bench_all
from solo_minent.bench.goals import FILES, PICTURE
from solo_minent.cli import main
from solo_minent.cli.parser import parse
from solo_minent.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.sh"
TINY = ["--tiny", "--pairs", "1", "--device", "cpu", "--seconds", "1e-4"]


@pytest.fixture
def measured(monkeypatch):
    """Names of parts that were measured, with their files, in place of measuring."""
    found = []

    def measure(name):
        return lambda settings, csv: found.append((name, csv.name))

    monkeypatch.setattr(everything, "PARTS", {name: measure(name) for name in PARTS})
    return found


def test_losses_are_printed_and_written(tmp_path, capsys):
    csv = tmp_path / "out" / "loss.csv"
    assert main(["bench", "loss", *TINY, "--loss", "mec,minent heads", "--csv", str(csv)]) == 0
    assert "times faster" in capsys.readouterr().out
    rows = pd.read_csv(csv)
    assert rows["loss"].tolist() == ["mec", "minent heads"] and set(rows["sizes"]) == {"tiny"}
    assert {"MiB ours", "MiB plain", "ms plain", "packages", "cpu"} <= set(rows)


def test_growth_is_written_with_its_picture_and_said_in_words(tmp_path, monkeypatch, capsys):
    from solo_minent.bench import growth

    def rows(devices, pairs, seconds, tiny):
        assert (devices, pairs, seconds, tiny) == (("cpu",), 1, 5e-5, True)
        same = {"device": "cpu", "ms": 2.0, "low": 1.0, "high": 3.0, "MiB": 4.0, "pairs": 1}
        sizes = {"n": "d=8", "d": "n=8", "training points": "", "workers": "digits, image_folder"}
        return [
            {"method": method, "against": against, "value": value, "fixed": sizes[against], **same}
            for method, against in (
                ("mec", "n"),
                ("mec", "d"),
                ("kNN", "training points"),
                ("loader", "workers"),
            )
            for value in (8, 16, 32, 64)
        ]

    monkeypatch.setattr(growth, "bench_growth", rows)
    assert main(["bench", "growth", *TINY, "--csv", str(tmp_path / "g.csv")]) == 0
    shown = capsys.readouterr().out
    assert "Exponents" in shown and "mec: Builds n x n" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.csv", "g.png"]


def test_steps_fill_three_files(tmp_path, monkeypatch):
    from solo_minent.bench import step

    asked = []

    def rows(name):
        def measure(configs, pairs, *rest):
            asked.append((name, [c.method for c in configs], pairs, *rest))
            return [{"method": c.method, "device": "cpu"} for c in configs]

        return measure

    for name in ("bench_step", "bench_phases", "bench_loop"):
        monkeypatch.setattr(step, name, rows(name))
    csv = tmp_path / "s.csv"
    command = ["bench", "step", "--pairs", "3", "--device", "cpu", "--method", "mec,twist"]
    assert main([*command, "--csv", str(csv), "optimizer.batch_size=4"]) == 0
    methods = ["mec", "twist"]
    assert asked == [
        ("bench_step", methods, 3, 0.2),
        ("bench_phases", methods, 3, 0.2),
        ("bench_loop", methods, 3, 2),
    ]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["s-loop.csv", "s-phases.csv", "s.csv"]


@pytest.mark.parametrize("tiny", [False, True])
def test_the_steps_are_those_of_a_resnet18_on_cifar(tiny):
    import torch

    settings = Settings(tiny=tiny, overrides=["optimizer.batch_size=4"])
    configs = everything._step_configs(settings, torch.device("cpu"))
    assert [config.method for config in configs] == ["minent", "mec", "twist", "corinfomax"]
    for config in configs:
        assert config.backbone.name == ("timm:resnet10t" if tiny else "resnet18")
        assert (config.data.dataset, config.optimizer.batch_size) == ("cifar10", 4)
        assert (config.accelerator, config.precision) == ("cpu", "32-true")


def test_everything_is_measured_and_the_goals_are_printed(measured, tmp_path, capsys):
    bench_all(tmp_path / "new", Settings(["cpu"]))
    assert measured == [
        (name, FILES[name]) for name in ("loss", "growth", "startup", "knn", "step")
    ]
    shown = capsys.readouterr().out
    assert "Goals" in shown and "not measured yet" in shown and PICTURE in shown


def test_parts_can_be_asked_for_and_a_recipe_adds_the_loaders(measured, tmp_path, tiny_run):
    bench_all(tmp_path, Settings(["cpu"]), ["knn", "loss"])
    assert [name for name, _ in measured] == ["loss", "knn"]
    measured.clear()
    bench_all(tmp_path, Settings(["cpu"], config=tiny_run("minent")), ["loader"])
    assert measured == [("loader", "bench-loader.csv")]


def test_what_a_stopped_run_has_written_is_not_measured_again(tmp_path, monkeypatch, capsys):
    """The same command goes on; other settings, a damaged csv or one of another run start anew."""
    from solo_minent.bench import losses, startup

    measured = []

    def rows(name, *_):
        measured.append(name)
        if (name, len(measured)) == ("startup", 2):
            raise KeyboardInterrupt
        return [{"loss": "x", "device": "cpu", "what": name, "unasked": "", "shape": ""}]

    monkeypatch.setattr(losses, "bench_losses", lambda *_: rows("loss"))
    monkeypatch.setattr(startup, "bench_startup", lambda *_: rows("startup"))
    monkeypatch.setattr(everything, "print_goals", lambda folders: None)
    command = ["bench", "all", "--out", str(tmp_path), "--device", "cpu", "--only", "startup,loss"]

    def run(*more):
        measured.clear()
        status = main([*command, *more])
        return status, [*measured], capsys.readouterr()

    status, done, shown = run()
    assert (status, done) == (130, ["loss", "startup"])
    assert (
        "the same command goes on from there" in shown.err and "part 2 of 2: startup" in shown.err
    )
    assert [path.name for path in tmp_path.iterdir()] == [FILES["loss"]]
    status, done, shown = run()
    assert (status, done) == (0, ["startup"]) and "measured before, in " in shown.out
    assert run()[:2] == (0, [])
    (tmp_path / FILES["loss"]).write_text('loss\n"a"b\n')
    assert run()[:2] == (0, ["loss"])
    assert run("--pairs", "3")[1][0] == "loss"


def test_a_single_benchmark_is_always_measured(tmp_path, monkeypatch):
    from solo_minent.bench import losses

    measured = []

    def rows(*_):
        measured.append("loss")
        return [{"loss": "x"}]

    monkeypatch.setattr(losses, "bench_losses", rows)
    for _ in range(2):
        assert main(["bench", "loss", "--device", "cpu", "--csv", str(tmp_path / "x.csv")]) == 0
    assert len(measured) == 2


def test_sigterm_ends_a_benchmark_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    from solo_minent.bench import losses

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(losses, "bench_losses", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["bench", "loss", "--device", "cpu", "--csv", str(tmp_path / "x.csv")]) == 130
    assert capsys.readouterr().err == "stopped\n" and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_device_that_is_named_twice_is_measured_once(monkeypatch):
    from solo_minent.bench import losses

    asked = []
    monkeypatch.setattr(losses, "_measure", lambda case, *rest: asked.append(case.loss))
    losses.bench_losses(["cpu", "cpu"], ["mec"])
    assert asked == ["mec"]


def test_the_command_takes_a_recipe_and_overrides(measured, tmp_path):
    words = ["--recipe", "digits/minent", "optimizer.batch_size=32"]
    assert main(["bench", "all", "--out", str(tmp_path), *TINY, "--only", "loader", *words]) == 0
    assert [name for name, _ in measured] == ["loader"]


def test_a_smoke_test_of_parts_ends_with_the_goals(tmp_path, capsys):
    command = ["bench", "all", "--out", str(tmp_path), *TINY, "--only", "loss"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "MEC loss, n=1024 d=2048" in shown and "minent heads" in shown
    assert "these figures say nothing about speed" in shown
    assert [path.name for path in tmp_path.iterdir()] == [FILES["loss"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: what"),
        (["losses"], "invalid choice: 'losses'"),
        (["loss", "--pairs", "0"], "--pairs is out of range: 0"),
        (["loss", "--pairs", "x"], "argument --pairs: invalid int value: 'x'"),
        (["loss", "--seconds", "nan"], "--seconds is out of range: nan"),
        (["loss", "--device", "tpu"], "--device is unknown: tpu"),
        (["loss", "--device", "cuda"], "--device is not there: cuda"),
        (["loss", "--loss", "simclr"], "--loss is unknown: simclr"),
        (["loss", "--csv", "{file}/x.csv"], "results cannot be written: "),
        (["loss", "max_epochs=1"], "unrecognized arguments: max_epochs=1"),
        (["knn", "--train", "1"], "--train is out of range: 1"),
        (["knn", "--data", "noise"], "--data is unknown: noise"),
        (["growth", "--csv", "{folder}"], "results cannot be written: "),
        (["startup", "--pairs", "-1"], "--pairs is out of range: -1"),
        (["step", "--method", "simclr"], "--method is unknown: simclr"),
        (["step", "optimizer.batchsize=3"], "key is unknown: optimizer.batchsize"),
        (["step", "precision=16-mixed"], "precision is not measured: 16-mixed"),
        (["step", "data.root={folder}/no"], "cifar10 not found: "),
        (["step", "accelerator=gpu"], "device is said twice: accelerator=gpu on cpu"),
        (["all"], "the following arguments are required: --out"),
        (["all", "--out", "{file}/x"], "results cannot be written: "),
        (["all", "--out", "{folder}", "--only", "speed"], "--only is unknown: speed"),
        (["all", "--out", "{folder}", "--only", "loader"], "loader's data is not named"),
        (["all", "--out", "{folder}", "nope=3"], "key is unknown: nope"),
        (["all", "--out", "{folder}/new", "data.root={folder}/no"], "cifar10 not found: "),
        (["all", "--out", "{folder}/new", "optimizer.batch_size=0"], "batch_size"),
        (["loss", "--csv", "{folder}/new/x.csv", "--pairs", "0"], "--pairs is out of range: 0"),
        (["loss", "--csv", "{folder}/new/x.csv", "--loss", "mc"], "--loss is unknown: mc"),
        (["knn", "--csv", "{folder}/new/x.csv", "--test", "1"], "--test is out of range: 1"),
    ],
)
def test_bad_input_is_one_line_before_any_work(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for module, work in (
        ("losses", "_measure"),
        ("growth", "_grow"),
        ("knn", "_run"),
        ("startup", "_run"),
        ("step", "bench_step"),
    ):
        monkeypatch.setattr(f"solo_minent.bench.{module}.{work}", None)
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    assert main(["bench", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# scripts/bench_gpu.sh


def script(*arguments, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_measures_on_a_gpu_within_its_time():
    done = script("data.root=/data/cifar10", SOLO_MINENT="echo", OUT="/results")
    assert done.returncode == 0, done.stderr
    options = parse(done.stdout.split())
    assert (options.out, options.device, options.pairs, options.tiny) == (
        "/results",
        "cuda",
        5,
        False,
    )
    assert options.only == "loss,growth,step" and options.words == ["data.root=/data/cifar10"]
    assert "LIMIT:-530" in SCRIPT.read_text()


def test_a_dry_run_of_the_script_needs_no_gpu(tmp_path):
    command = tmp_path / "solo-minent"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m solo_minent "$@"\n')
    command.chmod(0o755)
    done = script(
        **{"SOLO_MINENT": str(command), "OUT": str(tmp_path / "out"), "ONLY": "loss"},
        **{"DEVICE": "cpu", "TINY": "1", "PAIRS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Goals" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILES["loss"]]


def test_the_script_runs_the_checkout_where_nothing_is_installed(tmp_path):
    if (SCRIPT.parents[1] / ".venv").exists():  # what it would take
        tree = tmp_path / "tree"
        (tree / "scripts").mkdir(parents=True)
        script_file = tree / "scripts" / SCRIPT.name
        script_file.write_bytes(SCRIPT.read_bytes())
    else:
        tree, script_file = SCRIPT.parents[1], SCRIPT
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(script_file)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "PYTHONPATH": "/wheels"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(f"{tree}:/wheels -m solo_minent bench all --out {tree}/zoo")


# A command that ends at SIGINT, and one that has to be killed.
@pytest.mark.parametrize("body", ["exec sleep 60", "trap '' INT; sleep 60"])
def test_the_script_says_when_its_time_is_up(body, tmp_path):
    command = tmp_path / "solo-minent"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(0o755)
    done = script(SOLO_MINENT=str(command), LIMIT="0.2", OUT=str(tmp_path))
    assert done.returncode == 124
    assert done.stderr.splitlines()[-1].startswith("error: time is up: LIMIT=0.2 seconds")


def test_settings_are_checked_before_the_folder_is_made(tmp_path):
    with pytest.raises(UserError, match="--pairs is out of range: 0"):
        bench_all(tmp_path / "new", Settings(["cpu"], pairs=0))
    assert list(tmp_path.iterdir()) == []
