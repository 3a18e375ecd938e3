"""The command line as a user meets it: help at once, one line for an error, exit status."""

import os
import subprocess
import sys

import pytest

from solo_minent.cli import main

# What `import solo_minent`, `--help` and the parsing of a command must not pull in.
HEAVY = "torch solo lightning timm hydra pandas matplotlib sklearn rich nvidia wandb umap"


def python(*arguments, **kwargs):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_help_is_light():
    code = (
        "import sys, solo_minent, solo_minent.cli\n"
        "try: solo_minent.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & set('{HEAVY}'.split())))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "pretrain" in done.stdout and "doctor" in done.stdout


def test_module_and_version():
    assert python("-m", "solo_minent", "--version").stdout.startswith("solo-minent 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "run is not named: no arguments"),
        (["pretrain", "--recipe", "digits/minnt"], "recipe is unknown: digits/minnt"),
        (["pretrain", "--recipe", "digits/minent", "max_epoch=3"], "key is unknown: max_epoch"),
        (["pretrain", "--recipe", "digits/minent", "runs"], "run is not named"),
        (["pretrain", "--recipe", "cifar10/mec", "method_kwargs.order=3"], "order is not even: 3"),
        (["pretrain", "--recipe", "cifar10/mec", "data.root=/nowhere"], "/nowhere"),
        (["pretrain", "--recipe", "cifar10/mec"], "data.root"),
        (
            ["pretrain", "--recipe", "digits/mec", "optimizer.batch_size=1"],
            "batch_size is too small",
        ),
        (["pretrain", "--recipe", "digits/mec", "optimizer.batch_size=4096"], "4096 is larger"),
        (["pretrain", "--recipe", "digits/mec", "backbone.name=resnet19"], "resnet19"),
        (
            ["pretrain", "--recipe", "digits/mec", "accelerator=gpu"],
            "accelerator is not there: gpu",
        ),
        (["knn", "no/run"], "run folder is missing: no/run"),
        (["linear", "--recipe", "digits/mec"], "backbone weights are missing"),
        (["knn", "--recipe", "digits/mec", "--target", "noise"], "target is unknown: noise"),
        (["knn", "--recipe", "digits/mec", "--target", "pixels", "--k", "0"], "k must be"),
        (["report", "--recipe", "digits/twist"], "backbone weights are missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="recipe is unknown"):
        main(["pretrain", "--recipe", "nothing", "--debug"])


def test_another_run_in_the_folder_is_refused(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from solo_minent.pretrain import pretrain

    folder = pretrain(tiny_run("minent", "max_epochs=1", "evaluation.knn_every=0"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    from solo_minent.errors import UserError

    with pytest.raises(UserError, match="another run.*seed: 0 -> 7.*another name"):
        pretrain(tiny_run("minent", "max_epochs=1", "evaluation.knn_every=0", "seed=7"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_report_draws_a_table_and_a_picture(tiny_run, capsys):
    from PIL import Image

    from solo_minent.pretrain import pretrain

    folder = pretrain(tiny_run("twist"))
    capsys.readouterr()
    overrides = ["evaluation.linear.max_epochs=2"]
    assert main(["report", str(folder), *overrides]) == 0
    printed = capsys.readouterr().out
    for row in ("raw pixels", "untrained backbone", "trained backbone"):
        assert row in printed
    with Image.open(folder / "report.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors(256)) > 50
    options = ["--k", "3", "--temperature", "0.1", "--distance", "cosine"]
    assert main(["knn", str(folder), *options]) == 0
    assert "3-NN, cosine, weights exp(sim / 0.1)" in capsys.readouterr().out
    assert main(["linear", str(folder), "--target", "random", *overrides]) == 0
    assert "top-1" in capsys.readouterr().out


def test_recipes_and_doctor(capsys):
    assert main(["recipes"]) == 0
    assert "cifar10/corinfomax" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "solo-learn" in printed and "torch" in printed


def test_without_solo_learn_everything_says_the_command_that_installs_it(tmp_path):
    command = "pip install --no-deps solo-learn==1.0.2"
    hidden = "import sys; sys.modules['solo'] = None\n"
    plugin = python("-c", f"{hidden}import solo_minent.plugin")
    assert plugin.returncode == 1 and command in plugin.stderr.splitlines()[-1]
    call = "from solo_minent.cli import main; sys.exit(main(sys.argv[1:]))"
    pretrain = ["-c", hidden + call, "pretrain", "--recipe", "digits/minent"]
    done = python(*pretrain, cwd=tmp_path)
    assert done.returncode == 2 and command in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    doctor = python("-c", hidden + call, "doctor", env={**os.environ, "COLUMNS": "160"})
    assert doctor.returncode == 1 and command in doctor.stdout
