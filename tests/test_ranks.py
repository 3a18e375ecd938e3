"""Ranks: the same curve on 1, 2 and 4 of them, and one end for all when one dies or hangs."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.cli.words import say, say_first
from solo_minent.config import load_recipe, to_yaml
from solo_minent.machine import is_first_process
from solo_minent.training.folder import LOCK_FILE, alone

SCRIPT = Path(__file__).with_name("ddp_curve.py")
REPOSITORY = Path(__file__).parents[1]
METHODS = ["minent", "mec", "twist", "corinfomax"]
WORLDS = [1, 2, 4]
# As in conftest.py's TINY and TINY_METHODS, a network of a second.
TINY = [
    "data.num_workers=0",
    "backbone.kwargs.channels=[8,16,16,16]",
    "accelerator=cpu",
    "evaluation.knn_every=0",
    "evaluation.batch_size=16",
    # 330 = 10 x 32 + 10: the last batch of an epoch is uneven. 83 held-out images are shares of 41
    # and 42, or of 20 and 21.
    "data.train_images=330",
    "data.val_images=83",
]
TINY_METHODS = {
    "minent": ["method_kwargs.heads=[16,8]", "method_kwargs.hidden_dim=32"],
    "mec": ["method_kwargs.hidden_dim=32", "method_kwargs.output_dim=32"],
    "twist": [
        "method_kwargs.hidden_dim=32",
        "method_kwargs.output_dim=16",
        "method_kwargs.bunch_size=32",
    ],
    "corinfomax": ["method_kwargs.hidden_dim=32", "method_kwargs.output_dim=16"],
}
TWENTY_STEPS = ["max_epochs=2", "precision=64-true"]
ACCUMULATED = "accumulated"
CASES = {  # name: (method, overrides)
    **{method: (method, TWENTY_STEPS) for method in METHODS},
    # 10 batches of an epoch are steps of 4, 4 and 2.
    ACCUMULATED: ("corinfomax", [*TWENTY_STEPS, "accumulate_grad_batches=4"]),
    **{
        f"{method}-32": (method, ["max_epochs=1", "precision=32-true", "data.train_images=40"])
        for method in METHODS
    },
}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def end(process: subprocess.Popen) -> None:
    """Kills what is left of a process and of those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs[case, world]`: the steps of each rank, the log and the weights at the end."""
    folder = tmp_path_factory.mktemp("curves")
    found = {}
    for world in WORLDS:
        recipes, configs = [], {}
        # Four ranks take their time on two cores: the methods alone.
        for case in CASES if world < 4 else METHODS:
            method, overrides = CASES[case]
            config = load_recipe(
                f"digits/{method}",
                [
                    *TINY,
                    *TINY_METHODS[method],
                    *overrides,
                    f"output_dir={folder / 'runs'}",
                    f"name={case}-{world}",
                    f"devices={world}",
                    f"optimizer.batch_size={32 // world}",
                ],
            )
            recipes.append(folder / f"{case}-{world}.yaml")
            recipes[-1].write_text(to_yaml(config))
            configs[case] = config
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *map(str, recipes)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=500)
        finally:
            end(process)
        assert process.returncode == 0, output
        for case, config in configs.items():
            ranks = [
                json.loads((folder / f"{case}-{world}-{rank}.json").read_text())
                for rank in range(world)
            ]
            log = pd.read_csv(config.run_dir / "log.csv")
            checkpoint = torch.load(config.run_dir / CHECKPOINT_FILE, weights_only=True)
            found[case, world] = ranks, log, checkpoint["state_dict"]
    return found


def global_terms(ranks: list, step: int) -> dict[str, float]:
    """What a step logged, of the global batch: a method's terms are, the classifier's a mean."""
    names = [name for name in ranks[0][step] if name != "images"]
    return {name: sum(rank[step][name] for rank in ranks) / len(ranks) for name in names}


@pytest.mark.parametrize(
    ("case", "world"), [*itertools.product(METHODS, WORLDS[1:]), (ACCUMULATED, 2)]
)
def test_ranks_have_one_loss_curve(runs, case, world):
    """In float64: what is left of the promised 1e-5 is room for nothing but rounding."""
    (one,), log, weights = runs[case, 1]
    ranks, other_log, other_weights = runs[case, world]
    assert len(one) == 20 and all(len(rank) == 20 for rank in ranks)
    for step, expected in enumerate(one):
        assert sum((rank[step]["images"] for rank in ranks), []) == expected["images"]
        expected = global_terms([one], step)
        assert global_terms(ranks, step) == pytest.approx(expected, rel=1e-8, abs=1e-10)
        for rank in ranks:  # every one knows the loss of the global batch
            name = f"train_{CASES[case][0]}_loss"
            assert rank[step][name] == pytest.approx(expected[name], rel=1e-8, abs=1e-10)
    # The means of an epoch, validation on uneven shares among them: no image counts twice.
    assert log["val_acc1"].notna().all() and log["val_loss"].notna().all()
    pd.testing.assert_frame_equal(log, other_log, rtol=1e-6, atol=1e-9)
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_ranks_have_one_loss_in_float32(runs, method):
    """Of the first step: the steps after it multiply a rounding error by some ten each."""
    (one,), _, _ = runs[f"{method}-32", 1]
    ranks, _, _ = runs[f"{method}-32", 2]
    assert len(one) == 1
    assert global_terms(ranks, 0) == pytest.approx(global_terms([one], 0), rel=1e-5, abs=1e-6)


# Which process this is, as its launcher says it.

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "minent"}
SHELL = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("variables", "first", "says_errors"),
    [
        ({}, True, True),
        # Lightning's child; its parent, which has passed the checks, is silent by then.
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, True),
        # Lightning's way by hand: the command of the first node, and of the second.
        ({"NODE_RANK": "0"}, True, True),
        ({"NODE_RANK": "1"}, False, True),
        ({"GROUP_RANK": "1"}, False, True),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True, True),
        ({**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}, False, False),
        ({**TORCHRUN, "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False, True),
        # A rendezvous numbers the nodes as they come; torchrun inside a Slurm job counts.
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True, True),
        ({**TORCHRUN, **SLURM, "SLURM_PROCID": "1", "RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({**TORCHRUN, **SLURM, "SLURM_LOCALID": "0", "RANK": "1", "LOCAL_RANK": "1"}, False, False),
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True, True),
        ({**SLURM, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False, False),
        ({**SLURM, "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, False, True),
        (SHELL, True, True),
        ({**SHELL, "LOCAL_RANK": "1"}, False, True),
    ],
)
def test_who_is_first_and_who_says_what_goes_wrong(
    variables, first, says_errors, monkeypatch, tmp_path, capsys
):
    known = ("SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "JSM_")
    for name in [name for name in os.environ if name.startswith(known)]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first
    with alone(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists() == first
    say("run folder: x")
    say("error: x", sys.stderr)
    say_first("stopped")
    printed = capsys.readouterr()
    assert printed.out == "run folder: x\n" * first
    assert printed.err == "error: x\n" * says_errors + "stopped\n" * first


# One that dies.


def start(config, launcher: str, folder: Path) -> subprocess.Popen:
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*(torchrun if launcher == "torchrun" else []), "solo_minent", "pretrain"]
    with open(folder / "stderr.txt", "w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", *command, "--recipe", str(recipe)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def family(process: subprocess.Popen) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def rank_of(process: psutil.Process) -> int | None:
    """The rank of a process that trains; None for torchrun."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if "pretrain" in words and "torch.distributed.run" not in words:
            return int(process.environ().get("LOCAL_RANK", 0))
    return None


@pytest.mark.parametrize(
    ("launcher", "victim", "signum", "words", "again"),
    [
        ("lightning", 1, signal.SIGKILL, "has ended: rank 1 (process {pid} on ", True),
        ("lightning", 0, signal.SIGKILL, "has ended: rank 0 (process {pid} on ", False),
        ("torchrun", 1, signal.SIGKILL, "has ended: rank 1 (process {pid} on ", False),
        ("lightning", 1, signal.SIGSTOP, "does not answer: rank 1 (process {pid} on ", False),
    ],
)
def test_a_rank_that_dies_ends_the_others(
    tiny_run, tmp_path, launcher, victim, signum, words, again
):
    hangs = signum == signal.SIGSTOP
    timeout = 0.75 if hangs else 10.0  # it holds for the start as well
    overrides = [
        "devices=2",
        "optimizer.batch_size=16",
        "data.num_workers=1",
        "evaluation.knn_every=0",
        "max_epochs=100000",
        f"process_timeout={timeout}",
    ]
    config = tiny_run("minent", *overrides)
    checkpoint = config.run_dir / CHECKPOINT_FILE
    process = start(config, launcher, tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not checkpoint.exists() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "stderr.txt").read_text()
            time.sleep(0.1)
        everyone = family(process)
        # Loader processes are forked after the rank that they look like.
        by_age = sorted(everyone, key=psutil.Process.create_time, reverse=True)
        ranks = {rank_of(each): each for each in by_age}
        started = time.monotonic()
        ranks[victim].send_signal(signum)
        process.wait(timeout=180)
        others = [each for each in everyone if each is not ranks[victim]]
        _, alive = psutil.wait_procs(others if not hangs else everyone, timeout=60)
        took = time.monotonic() - started
    finally:
        end(process)
    assert not alive
    assert process.returncode != 0
    # Most of it is the machine; what waits, waits `process_timeout`.
    assert took < 60 + (60 * timeout if hangs else 0)
    error = (tmp_path / "stderr.txt").read_text()
    assert error.count("error: ") == 1, error
    assert f"error: a process of the run {words.format(pid=ranks[victim].pid)}" in error
    assert "The run continues from its last checkpoint with the same command." in error
    if launcher != "torchrun":  # which has a traceback of its own
        assert error.count("\n") == 1, error
    if again:
        check_that_it_goes_on(config, launcher, tmp_path)


def test_an_error_of_one_rank_is_said_once_by_it(tiny_run, tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.full((16, 16, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    damaged = tmp_path / "set" / "train" / "a" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    config = tiny_run(
        "minent",
        "devices=2",
        "optimizer.batch_size=4",
        "data.dataset=custom",
        "data.mean=[0.5,0.5,0.5]",
        "data.std=[0.5,0.5,0.5]",
        f"data.root={tmp_path / 'set'}",
        "data.train_images=null",
        "data.val_images=null",
        "evaluation.knn_every=0",
    )
    process = start(config, "lightning", tmp_path)
    try:
        process.wait(timeout=240)
    finally:
        end(process)
    error = (tmp_path / "stderr.txt").read_text()
    assert process.returncode == 2, error
    assert error.count("\n") == 1, error
    assert f"error: cannot read an image: {damaged}" in error


def check_that_it_goes_on(config, launcher: str, folder: Path) -> None:
    """The folder is free, and the same command goes on where the last checkpoint is."""
    checkpoint = config.run_dir / CHECKPOINT_FILE
    before = step = torch.load(checkpoint, weights_only=True)["global_step"]
    process = start(config, launcher, folder)
    try:
        deadline = time.monotonic() + 240
        while step <= before and time.monotonic() < deadline:
            assert process.poll() is None, (folder / "stderr.txt").read_text()
            time.sleep(0.5)
            step = torch.load(checkpoint, weights_only=True)["global_step"]
    finally:
        end(process)
    assert step > before
