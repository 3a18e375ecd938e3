"""No half file: what a kill or a full disk leaves is the old file or the new one, both whole."""

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from solo_minent import checkpoint_io
from solo_minent.checkpoint import CHECKPOINT_FILE, add_result, save_backbone
from solo_minent.checkpoint_io import read_checkpoint, save_checkpoint
from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.files import write_atomic, write_text
from solo_minent.pretrain import pretrain

SCRIPT = Path(__file__).with_name("write_and_die.py")
FILES = ("checkpoint", "results", "backbone", "log")
# Kill points taken by default; there are 373, 24, 19 and 172.
SOME = {"checkpoint": 36, "results": 10, "backbone": 10, "log": 10}


def killed(folder, how, most, timeout):
    """What each kill left, by file."""
    wanted = [f"{what}:{most[what]}" for what in FILES]
    command = [sys.executable, SCRIPT, folder, how, *wanted]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    kills = [json.loads(line) for line in run.stdout.splitlines()]
    return {what: [kill for kill in kills if kill["what"] == what] for what in FILES}


def check(kills):
    """Nothing is lost, the next write works and clears up; both ends of the write were reached."""
    for kill in kills:
        assert kill["after"] in ("old", "new"), kill
        assert (kill["next"], kill["others"]) == ("next", []), kill
    seen = Counter((kill["after"], kill["left"]) for kill in kills)
    # Killed before the temporary file is there, while it is filled, and after it has its name.
    assert seen["old", False] and seen["old", True] and seen["new", False]
    after = [kill["after"] for kill in kills]
    assert after == sorted(after, reverse=True)  # the new one, once it is there, stays


@pytest.fixture(scope="module")
def some_kills(tmp_path_factory):
    return killed(tmp_path_factory.mktemp("kills"), "calls", SOME, timeout=300)


@pytest.mark.parametrize("what", FILES)
def test_a_kill_inside_the_write_loses_no_file(some_kills, what):
    assert len(some_kills[what]) == SOME[what]
    check(some_kills[what])


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["calls", "system"])
def test_a_kill_at_every_boundary_of_the_write_loses_no_file(tmp_path, how, capsys):
    """`system`: before and after every system call; needs ptrace of one's own children."""
    kills = killed(tmp_path, how, dict.fromkeys(FILES, 0), timeout=3000)
    for found in kills.values():
        assert len(found) == found[0]["of"]
        check(found)
    with capsys.disabled():
        counts = ", ".join(f"{what} {len(found)}" for what, found in kills.items())
        print(f"\nkills survived ({how}): {counts}; bytes lost = 0")


@contextmanager
def small_files(size):
    """No file of this process grows beyond `size` bytes, as on a disk that has no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def foreign_safetensors(path, values):
    from safetensors.numpy import save_file

    write_atomic(path, lambda temporary: save_file({"x": values}, temporary))


def foreign_h5(path, values):
    import h5py

    def write(temporary):
        with h5py.File(temporary, "w") as file:
            file["x"] = values

    write_atomic(path, write)


def table(path, values):
    frame = pd.DataFrame({"x": values})
    write_atomic(path, lambda temporary: frame.to_csv(temporary, index=False))


def picture(path, values):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().imshow(values[: 10**4].reshape(100, 100), interpolation="nearest")
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=400, format="png"))


WRITERS = {
    "last.ckpt": lambda path, x: save_checkpoint(
        {"epoch": 0, "state_dict": {"x": torch.from_numpy(x)}}, path
    ),
    "backbone.safetensors": lambda path, x: save_backbone(
        path, {"x": torch.from_numpy(x)}, load_recipe("digits/mec")
    ),
    "results.json": lambda path, x: add_result(path.parent, {"target": "a", "x": x.tolist()}),
    "config.yaml": lambda path, x: write_text(path, str(x.tolist())),
    "log.csv": table,
    "umap.png": picture,
    "train.h5": foreign_h5,
    "other.safetensors": foreign_safetensors,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, name):
    path, rng = tmp_path / name, np.random.default_rng(0)
    write, old, new = WRITERS[name], rng.normal(size=10**4), rng.normal(size=2 * 10**4)
    write(path, old)
    before, names = path.read_bytes(), sorted(tmp_path.iterdir())
    with small_files(30_000), pytest.raises(UserError) as caught:
        write(path, new)
    message = str(caught.value)
    assert message.startswith(f"disk is full: {path} needs ")
    assert "(File too large). The previous file is untouched. Free space" in message
    assert message.endswith("then start the same command again: it continues.")
    assert "\n" not in message
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == names  # no temporary file
    write(path, new)
    assert path.read_bytes() != before


def test_a_run_continues_once_there_is_space(tiny_run, monkeypatch, capsys):
    config = tiny_run("mec")
    saved, save = [], checkpoint_io.save_checkpoint

    def save_second_on_a_full_disk(checkpoint, path):
        saved.append(checkpoint["epoch"])
        with small_files(30_000 if len(saved) == 2 else resource.RLIM_INFINITY):
            save(checkpoint, path)

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", save_second_on_a_full_disk)
    path = config.run_dir / CHECKPOINT_FILE
    with pytest.raises(UserError, match=f"disk is full: {path} .*previous file is untouched"):
        pretrain(config)
    assert read_checkpoint(path)["epoch"] == saved[0]
    assert list(path.parent.iterdir()) == [path]
    pretrain(config)
    assert f"continuing from {path}" in capsys.readouterr().out
    assert pd.read_csv(config.run_dir / "log.csv")["epoch"].tolist() == [0, 1, 2]


# A mount namespace of one's own: a disk of a few KiB that nobody else sees.
FULL_DISK = """
set -u
mount -t tmpfs -o size="$1" none "$2"
shift 2
"$@"
echo "status $?"
df -k --output=used "$DISK" | tail -1
ls -A "$DISK"/runs/digits/mec/default/checkpoints
mount -o remount,size=64m "$DISK"
"$@"
echo "status $?"
"$PYTHON" -c 'import sys, torch
print("epoch", torch.load(sys.argv[1], weights_only=True)["epoch"])' \
    "$DISK"/runs/digits/mec/default/checkpoints/last.ckpt
"""


@pytest.mark.stress
def test_a_run_on_a_disk_that_fills_up_continues_once_there_is_space(tmp_path, tiny_run):
    config = tiny_run("mec", "max_epochs=1", "method_kwargs.hidden_dim=512")
    size = (pretrain(config) / CHECKPOINT_FILE).stat().st_size
    assert size > 400_000
    disk = tmp_path / "disk"
    disk.mkdir()
    settings = ["max_epochs=3", "data.num_workers=0", "data.train_images=160", "accelerator=cpu"]
    settings += ["data.val_images=80", "optimizer.batch_size=32", "method_kwargs.output_dim=32"]
    settings += ["backbone.kwargs.channels=[8,16,16,16]", "method_kwargs.hidden_dim=512"]
    command = [sys.executable, "-m", "solo_minent", "pretrain", "--recipe", "digits/mec"]
    command += [*settings, f"output_dir={disk / 'runs'}"]
    run = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", str(size * 3 // 2)]
        + [str(disk), *command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "DISK": str(disk), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert "error: disk is full: " in run.stderr, run.stderr
    assert "(No space left on device). The previous file is untouched." in run.stderr
    lines = run.stdout.splitlines()
    first = lines.index("status 2")
    assert lines[first + 2] == "last.ckpt" and not lines[first + 3].endswith(".tmp")
    assert any(line.startswith("continuing from") for line in lines[first:])
    assert lines[-2:] == ["status 0", "epoch 2"]
