"""The command line as a user meets it: help at once, one line for an error, exit status."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solo_minent import cli
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
            "batch_size is out of range: 1",
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
        (
            ["knn", "--recipe", "digits/mec", "--target", "pixels", "--k", "0"],
            "--k is out of range: 0",
        ),
        (["knn", "--recipe", "digits/mec", "--target", "pixels", "--k", "1439"], "--k is out of"),
        (
            ["knn", "--recipe", "digits/mec", "--temperature", "nan"],
            "--temperature is out of range",
        ),
        (["knn", "--recipe", "digits/mec", "--temperature", "-1"], "--temperature is out of range"),
        (["knn", "--recipe", "digits/mec", "--distance", "cos"], "Set --distance=cosine"),
        (
            ["knn", "--recipe", "digits/mec", "--target", "pixels", "evaluation.knn_k=2000"],
            "evaluation.knn_k is out of range: 2000. It is at least 1 and at most 1438.",
        ),
        (["pretrain", "--recipe", "digits/mec", "evaluation.knn_k=2000"], "knn_k is out of range"),
        (["pretrain", "--recipe", "digits/mec", "~nope"], "key is unknown: nope"),
        (["pretrain", "--recipe", "digits/mec", "~backbone.kwargs.nope"], "cannot be removed"),
        (["pretrain", "--recipe", "digits/mec", "=5"], "override is not key=value: =5"),
        (["pretrain", "--recipe", "digits/mec", "name=.."], "name is no folder name"),
        (["pretrain", "--recipe", "digits/mec", "accelerator=tpu"], "accelerator is unknown: tpu"),
        (["pretrain", "--recipe", "digits/mec", "backbone.kwargs.name=x"], "backbone.kwargs.name"),
        (["pretrain", "--recipe", "digits/mec", "backbone.kwargs.norm_layer=5"], "be built with"),
        (["pretrain", "--recipe", "digits/mec", "output_dir=/proc/x"], "run folder cannot be made"),
        (["pretrain", "--recipe", "digits/mec", "folder=/dev/null/x"], "/dev/null is no folder"),
        (["linear", "--recipe", "digits/mec", "folder=/dev/null/x"], "/dev/null is no folder"),
        (["report", "--recipe", "digits/mec", "seed=-1"], "seed is out of range: -1"),
        ([], "command line is wrong: the following arguments are required: command"),
        (["train"], "command line is wrong: argument command: invalid choice: 'train'"),
        (["--nope"], "command line is wrong"),
        (["pretrain", "--nope"], "command line is wrong: unrecognized arguments: --nope"),
        (["recipes", "cifar10"], "command line is wrong: unrecognized arguments: cifar10"),
        (["knn", "run", "--k", "x"], "--k is no list of numbers: x"),
        (["report", "--recipe", "digits/twist"], "log is missing: runs/digits"),
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
    assert main(["report", str(folder), "--evaluate", *overrides]) == 0
    printed = capsys.readouterr().out
    for row in ("raw pixels", "untrained backbone", "trained backbone"):
        assert row in printed
    with Image.open(folder / "report.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors(256)) > 50
    options = ["--k", "3", "--temperature", "0.1", "--distance", "cosine"]
    assert main(["knn", str(folder), *options]) == 0
    assert "3-NN, cosine, weights exp(sim / 0.1)" in capsys.readouterr().out
    assert main(["linear", str(folder), "--target", "random", *overrides]) == 0
    assert "top1 " in capsys.readouterr().out


@pytest.fixture
def finished(tiny_run):
    """A run folder as a finished run leaves it, without the training."""
    from solo_minent.backbones import build_backbone
    from solo_minent.checkpoint import BACKBONE_FILE, save_backbone
    from solo_minent.config import to_yaml
    from solo_minent.files import write_text

    def make(*overrides):
        config = tiny_run("twist", "evaluation.linear.max_epochs=2", *overrides)
        backbone = build_backbone(config.backbone.name, "small", **config.backbone.kwargs)
        save_backbone(config.run_dir / BACKBONE_FILE, backbone.state_dict(), config)
        write_text(config.run_dir / "config.yaml", to_yaml(config))
        write_text(config.run_dir / "log.csv", "epoch,train_twist_loss\n1,0.5\n2,0.4\n")
        return config.run_dir

    return make


@pytest.mark.parametrize(
    ("command", "file", "content", "message"),
    [
        ("report", "log.csv", None, "log is missing: {path}"),
        ("report", "log.csv", b"", "log is damaged: {path}"),
        ("report", "log.csv", b"epoch,loss\n", "log is damaged: {path} (no epochs)"),
        ("report", "log.csv", b"a,b\n1,2\n", "log is damaged: {path} (no epochs)"),
        ("report", "log.csv", b"epoch\nx\n", "log is damaged: {path} (not all values are numbers"),
        ("report", "log.csv", b"epoch,a\n1,2,3,4\n1\n5,6,7,8,9,1", "log is damaged: {path}"),
        ("report", "log.csv", b"\xff\xfe\x00", "log is damaged: {path}"),
        ("report", "results.json", b"{}", "results are damaged: {path}"),
        ("knn", "results.json", b"[", "results are damaged: {path}"),
        ("linear", "results.json", b"[3]", "results are damaged: {path}"),
        ("linear", "config.yaml", b"\xff", "configuration {path} does not load"),
        ("linear", "backbone.safetensors", b"", "backbone weights are damaged: {path}"),
    ],
)
def test_damaged_files_are_found_before_the_slow_part(
    command, file, content, message, finished, monkeypatch, capsys
):
    folder = finished()
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("solo_minent.evaluation.targets.extract_features", None)
    assert main([command, str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(path=path)}") and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_report_of_few_images_leaves_the_few_shot_column_out(finished, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    folder = finished("data.train_images=30")
    assert main(["report", str(folder), "--evaluate"]) == 0
    printed = capsys.readouterr().out
    assert "-: a class has 3 training images of 5, see data.train_images" in printed
    rows = [line for line in printed.splitlines() if "backbone" in line or "raw pixels" in line]
    assert len(rows) == 3 and all(row.rstrip(" │").endswith("-") for row in rows)
    assert "1-NN" not in (folder / "results.json").read_text().replace("5-NN", "")
    assert main(["report", str(folder), "--evaluate", "data.train_images=4"]) == 2
    assert "evaluation.knn_k is out of range: 5" in capsys.readouterr().err


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_says_what_comes_next(finished, monkeypatch, capsys):
    import solo_minent.pretrain
    import solo_minent.report

    monkeypatch.setattr(solo_minent.pretrain, "pretrain", interrupted)
    assert main(["pretrain", "--recipe", "digits/mec"]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues the run\n"
    monkeypatch.setattr(solo_minent.report, "report", interrupted)
    assert main(["report", "--recipe", "digits/mec"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(("words", "path"), [([], None), (["--resume-from", "runs/a"], "runs/a")])
def test_resume_from_reaches_pretraining(words, path, monkeypatch):
    import solo_minent.pretrain

    got = []
    monkeypatch.setattr(
        solo_minent.pretrain, "pretrain", lambda config, resume_from: got.append(resume_from)
    )
    assert main(["pretrain", "--recipe", "digits/mec", *words]) == 0
    assert got == [path and Path(path)]


def test_one_process_of_several_speaks(monkeypatch, capsys):
    import solo_minent.pretrain

    monkeypatch.setattr(solo_minent.pretrain, "pretrain", lambda config, resume_from: "runs/x")
    for rank, printed in (("0", "run folder: runs/x\n"), ("1", "")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("RANK", rank)
        assert main(["pretrain", "--recipe", "digits/mec"]) == 0
        assert capsys.readouterr().out == printed
        assert main(["pretrain"]) == 2
        assert bool(capsys.readouterr().err) == bool(printed)


def test_a_missing_package_has_a_name(monkeypatch, capsys):
    errors = {
        "No module named 'einops'": ModuleNotFoundError("No module named 'einops'", name="einops"),
        "the TPU": ModuleNotFoundError("torch_xla for the TPU is missing. Install it."),
    }
    for error in errors.values():

        def fail(options, error=error):
            raise error

        monkeypatch.setattr(cli.run, "recipes", fail)
        assert main(["recipes"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(". ")[0] for line in lines] == [
        "error: package is missing: einops",
        "error: package is missing: torch_xla for the TPU is missing",
    ]


@pytest.mark.parametrize("arguments", [["recipes"], ["doctor"], ["--help"], ["knn", "--help"]])
def test_a_closed_pipe_ends_what_prints(arguments):
    command = [sys.executable, "-m", "solo_minent", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == -signal.SIGPIPE


def test_a_closed_pipe_is_an_error_elsewhere(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGPIPE)
    during = []
    monkeypatch.setattr(
        cli.run, "pretrain", lambda _: during.append(signal.getsignal(signal.SIGPIPE))
    )
    main(["pretrain"])
    assert during == [before]
    monkeypatch.delattr(signal, "SIGPIPE")  # as on Windows
    assert main(["recipes"]) == 0
    assert "digits/mec" in capsys.readouterr().out


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


def test_a_file_that_the_system_refuses_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "/locked/train")

    monkeypatch.setattr("solo_minent.prepare.prepare", refuse)
    words = ["prepare", "custom", "--root", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the system refuses a file: Permission denied: /locked/train.")
    assert len(error.splitlines()) == 1
    with pytest.raises(PermissionError):
        main([*words, "--debug"])
