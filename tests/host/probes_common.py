"""What the probes of both hosts share; see probes.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

FOLDER = Path(sys.argv[1])
SIMSIAM = {"proj_hidden_dim": 8, "proj_output_dim": 8, "pred_hidden_dim": 8, "temperature": 0.2}


def images(n: int = 10) -> Path:
    from PIL import Image

    for i in range(n):
        path = FOLDER / "train" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (20 * i, 100, 0)).save(path)
    return FOLDER / "train"


def check_scheduler_state(module, scheduler) -> None:
    torch.save(scheduler.state_dict(), FOLDER / "scheduler.pt")
    scheduler.load_state_dict(torch.load(FOLDER / "scheduler.pt", weights_only=True))
    scheduler.optimizer.step()
    scheduler.step()
    static = [g["lr"] for g in scheduler.optimizer.param_groups][-1]
    assert static == module.lr, "the predictor's rate moved"
