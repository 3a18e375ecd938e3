"""A run's folder: what it records, how it stops, what it refuses, two ranks."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(config, *overrides):
    """The same run from the command line, in a process of its own."""
    folder = config.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    from solo_minent.config import to_yaml

    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    return [sys.executable, "-m", "solo_minent", "pretrain", "--recipe", str(recipe), *overrides]


def test_a_finished_run_is_left_alone(tiny_run, capsys):
    config = tiny_run("minent", "max_epochs=1")
    before = contents(pretrain(config))
    pretrain(config)
    assert "run is complete: 1 epochs" in capsys.readouterr().out
    assert contents(config.run_dir) == before


def test_another_run_is_refused_even_without_its_checkpoint(tiny_run):
    config = tiny_run("minent", "max_epochs=1", "evaluation.knn_every=0")
    (pretrain(config) / CHECKPOINT_FILE).unlink()
    before = contents(config.run_dir)
    with pytest.raises(UserError, match="another run.*seed: 0 -> 7.*another name"):
        pretrain(tiny_run("minent", "max_epochs=1", "evaluation.knn_every=0", "seed=7"))
    assert contents(config.run_dir) == before


def test_what_later_evaluations_look_at_may_change_on_resume(tiny_run):
    config = tiny_run("minent", "max_epochs=1")
    (pretrain(config) / "backbone.safetensors").unlink()
    again = tiny_run("minent", "max_epochs=1", "evaluation.linear.lr=0.1")
    assert (pretrain(again) / "backbone.safetensors").is_file()
    sessions = json.loads((config.run_dir / "environment.json").read_text())
    assert len(sessions) == 2 and sessions[0]["packages"]["torch"]


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_named(tiny_run, junk):
    config = tiny_run("minent", "max_epochs=1", "evaluation.knn_every=0")
    (pretrain(config) / CHECKPOINT_FILE).write_bytes(junk)
    before = contents(config.run_dir)
    with pytest.raises(UserError, match=r"checkpoint is damaged: .*last\.ckpt"):
        pretrain(config)
    assert contents(config.run_dir) == before


def test_a_diverged_run_stops_and_exports_nothing(tiny_run):
    config = tiny_run("mec", "optimizer.name=sgd", "optimizer.lr=1e15", "evaluation.knn_every=0")
    what = r"training is not finite: train_mec_\w+ is nan.* at step \d on rank 0 \(epoch 1\)"
    with pytest.raises(UserError, match=what):
        pretrain(config)
    assert not (config.run_dir / "backbone.safetensors").exists()
    assert not (config.run_dir / CHECKPOINT_FILE).exists()


def test_a_row_of_the_log_holds_what_its_epoch_measured(tiny_run):
    config = tiny_run(
        "twist",
        "max_epochs=4",
        "method_kwargs.self_label_epoch=2",
        "evaluation.knn_every=3",
        "scheduler.interval=epoch",
    )
    log = pd.read_csv(pretrain(config) / "log.csv").set_index("epoch")
    assert log["train_twist_consistency"].notna().tolist() == [False, True, True, False, False]
    assert log["train_twist_diversity"].notna().tolist() == [False, True, True, True, True]
    assert log["knn_acc1"].notna().tolist() == [True, False, False, True, True]
    cosine = [1e-3, 1e-3 * 0.8535533905932737, 5e-4, 1e-3 * 0.14644660940672627]
    assert log["lr"].tolist()[1:] == pytest.approx(cosine)


def test_accumulated_batches_are_one_step(tiny_run):
    config = tiny_run("mec", "max_epochs=1", "accumulate_grad_batches=2", "evaluation.knn_every=0")
    checkpoint = torch.load(pretrain(config) / CHECKPOINT_FILE, weights_only=True)
    assert checkpoint["global_step"] == 3  # five batches of 32 out of 160 images


def test_two_ranks_train_one_run(tiny_run):
    config = tiny_run("corinfomax", "max_epochs=1", "devices=2", "optimizer.batch_size=16")
    done = subprocess.run(command(config), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    log = pd.read_csv(config.run_dir / "log.csv")
    assert log["epoch"].tolist() == [0, 1] and log["knn_acc1"].notna().all()
    checkpoint = torch.load(config.run_dir / CHECKPOINT_FILE, weights_only=True)
    assert checkpoint["global_step"] == 5  # 160 images, 2 x 16 a step
    assert checkpoint["state_dict"]["criterion.R1"].dtype == torch.float64


def test_ctrl_c_says_how_to_go_on_and_the_command_does(tiny_run):
    config = tiny_run("minent", "max_epochs=5000", "evaluation.knn_every=0")
    process = subprocess.Popen(
        command(config),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that put the tests into the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (config.run_dir / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in error and "Traceback" not in error
    torch.load(config.run_dir / CHECKPOINT_FILE, weights_only=True)
