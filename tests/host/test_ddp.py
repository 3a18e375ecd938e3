"""Two processes: solo-learn's checkpointer used to hang for ever in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_fit.py")


def test_two_processes_fit_and_write_checkpoints(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # lightning swallows SIGTERM
        pytest.fail(f"the fit did not end within 90 s:\n{process.communicate()[0]}")
    assert process.returncode == 0, output
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["steps"] for rank in ranks] == [4, 4]
    for name in ("val_loss", "val_acc1", "val_knn_acc1", "train_pull_loss", "tau"):
        assert ranks[0][name] == pytest.approx(ranks[1][name]), name
    (path,) = tmp_path.rglob("*.ckpt")
    assert path.name.endswith("-ep=1.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 4
