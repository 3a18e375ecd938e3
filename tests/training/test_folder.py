"""A run's folder goes on with its own run only, and one process works in it."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain
from solo_minent.training.folder import LOCK_FILE, alone, resume_point

QUICK = ("max_epochs=1", "evaluation.knn_every=0")


@pytest.fixture
def make(tiny_run):
    return lambda *overrides: tiny_run("minent", *QUICK, *overrides)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(make, kept):
    """The folder of `make()` after training, which happens once for all tests."""
    folder = make().run_dir
    if kept.is_dir():
        shutil.copytree(kept, folder)
    else:
        shutil.copytree(pretrain(make()), kept)
    return folder


@pytest.mark.parametrize(
    "override, line",
    [
        ("seed=7", "seed: 0 -> 7"),
        ("method_kwargs.hidden_dim=16", r"method_kwargs.hidden_dim: 32 -> 16"),
        ("data.num_workers=1", "data.num_workers: 0 -> 1"),
        ("evaluation.knn_k=3", "evaluation.knn_k: 5 -> 3"),
        ("checkpoint.every_steps=9", "checkpoint.every_steps: None -> 9"),
        ("monitor_every=0", "monitor_every: 50 -> 0"),
        ("max_epochs=2", "max_epochs: 1 -> 2"),
    ],
)
def test_any_difference_is_shown_and_refused(make, trained, override, line):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"{line}.*--resume-from") as caught:
        pretrain(make(override))
    assert str(caught.value).count(" -> ") == 1
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_resume_from_goes_on_with_another_configuration_and_shows_it(make, trained, capsys):
    longer = make("max_epochs=3", "name=longer", "data.num_workers=1")
    capsys.readouterr()
    pretrain(longer, resume_from=trained)
    said = capsys.readouterr().out
    assert "continuing from" in said and "step 5" in said
    for line in ("max_epochs: 1 -> 3", "data.num_workers: 0 -> 1", "name: default -> longer"):
        assert f"changed: {line}" in said
    assert pd.read_csv(longer.run_dir / "log.csv")["epoch"].tolist() == [1, 2, 3]
    assert pd.read_csv(trained / "log.csv")["epoch"].tolist() == [1]
    # The same command again is the same run now, and it is complete.
    capsys.readouterr()
    pretrain(longer, resume_from=trained)
    assert "run is complete" in capsys.readouterr().out


def test_resume_from_its_own_folder_takes_the_new_configuration(make, trained):
    pretrain(make("max_epochs=2"), resume_from=trained / CHECKPOINT_FILE)
    assert pd.read_csv(trained / "log.csv")["epoch"].tolist() == [1, 2]
    assert resume_point(make("max_epochs=2")).epochs == 2


def test_resume_from_does_not_overwrite_another_run(make):
    other, folder = pretrain(make("name=other")), pretrain(make("seed=3"))
    before = (folder / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(UserError, match="run folder holds another run: .*seed: 3 -> 0"):
        pretrain(make(), resume_from=other)
    assert (folder / CHECKPOINT_FILE).read_bytes() == before


def test_resume_from_nothing_or_from_a_strangers_file_is_refused(make, tmp_path):
    with pytest.raises(UserError, match="checkpoint to go on from is missing"):
        pretrain(make(), resume_from=tmp_path / "nowhere")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match="checkpoint is of no run of ours"):
        pretrain(make(), resume_from=tmp_path / "strange.ckpt")
    assert not make().run_dir.exists()


@pytest.mark.parametrize(
    "override, what",
    [
        ("method_kwargs.hidden_dim=16", "tensors differ, first projector.*hidden_dim: 32 -> 16"),
        ("optimizer.name=sgd", "optimizer.name: adam -> sgd"),
    ],
)
def test_resume_from_what_does_not_fit_is_one_line(make, trained, override, what):
    other = make(override, "max_epochs=2", "name=other")
    with pytest.raises(UserError, match=f"checkpoint does not fit: .*{what}"):
        pretrain(other, resume_from=trained)
    assert [path.name for path in other.run_dir.iterdir()] == [LOCK_FILE]


def test_resume_from_takes_the_new_learning_rate(make, trained):
    slower = make("optimizer.lr=2e-4", "optimizer.weight_decay=0.25", "max_epochs=2", "name=slower")
    steps = pretrain(slower, resume_from=trained)
    checkpoint = torch.load(steps / CHECKPOINT_FILE, weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert groups[0]["initial_lr"] == 2e-4 and groups[0]["weight_decay"] == 0.25
    assert checkpoint["lr_schedulers"][0]["base_lrs"][0] == 2e-4
    lr = pd.read_csv(steps / "log.csv")["lr"].tolist()
    assert len(lr) == 2 and 0 < lr[1] <= 2e-4


def test_a_moved_folder_is_the_same_run(make, trained, tmp_path, capsys):
    shutil.move(trained, tmp_path / "moved")
    pretrain(make(f"folder={tmp_path / 'moved'}"))
    assert "run is complete" in capsys.readouterr().out


HOLD = """
import sys
from pathlib import Path
from solo_minent.training.folder import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(make):
    """Another process that works in the folder of `make()`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(make().run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_on_a_run_folder_is_refused(make, holder):
    config = make()
    with pytest.raises(UserError, match=f"run folder is in use: .*process {holder.pid} on"):
        pretrain(config)
    assert [path.name for path in config.run_dir.iterdir()] == [LOCK_FILE]
    pretrain(make("name=beside"))
    holder.kill()  # a lock ends with its process, however it ends
    holder.wait()
    pretrain(config)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_one_line_and_no_end(number, tmp_path, monkeypatch, capsys):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with alone(tmp_path / "run"):
        said = capsys.readouterr().err
    folder = tmp_path / "run"
    assert said == f"this file system has no locks: {folder}. Start one process a run.\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_both_errors_of_a_lock_that_is_held(number, tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    in_use = pytest.raises(UserError, match="run folder is in use: .*another process")
    with in_use, alone(tmp_path / "run"):
        pass


def test_loader_processes_do_not_inherit_the_lock(tmp_path):
    with alone(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            os.read(os.pipe()[0], 1)  # outlives the lock
    try:
        again = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "run")],
            input="",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert again.stdout == "held\n", again.stderr
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_the_checkpoint_holds_its_configuration(make, trained):
    checkpoint = torch.load(trained / CHECKPOINT_FILE, weights_only=True)
    stored = checkpoint["solo_minent"]["config"]
    assert stored["method"] == "minent" and stored["optimizer"]["lr"] == make().optimizer.lr
    # What the folder says beside it does not matter.
    lines = (trained / "config.yaml").read_text().replace("seed: 0", "seed: 5")
    (trained / "config.yaml").write_text(lines)
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        pretrain(make("seed=5"))
    assert json.loads((trained / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_nothing_left_to_train_is_said(make, trained):
    with pytest.raises(UserError, match="nothing is left to train: .* has 1 epochs, max_epochs=1"):
        pretrain(make("seed=4", "name=other"), resume_from=trained)
    with pytest.raises(UserError, match="nothing is left to train.*Set max_epochs=2 or more"):
        pretrain(make("seed=4"), resume_from=trained)


def test_an_extended_run_has_no_export_until_it_ends(make, trained, monkeypatch):
    def no_fit(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.pytorch.Trainer.fit", no_fit)
    with pytest.raises(KeyboardInterrupt):
        pretrain(make("max_epochs=2"), resume_from=trained)
    assert (trained / CHECKPOINT_FILE).is_file()
    assert not (trained / "backbone.safetensors").exists()


@pytest.mark.parametrize("damage", ["{", "3", "[" * 100_000])
def test_a_damaged_environment_does_not_stop_a_run(make, trained, damage):
    (trained / "environment.json").write_text(damage)
    pretrain(make("max_epochs=2"), resume_from=trained)
    assert len(json.loads((trained / "environment.json").read_text())) == 1
