"""Pretrains recipes one after the other and notes every step: ddp_curve.py FOLDER RECIPE...

Lightning starts the processes of a recipe with devices > 1, which run this script again. Each one
writes FOLDER/<name of the run>-<rank>.json: what every training step logged, and its images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from solo_minent import pretrain as module
from solo_minent.config import load_recipe

torch.set_num_threads(1)


class Curve(Callback):
    """What every training step logged."""

    def __init__(self) -> None:
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        terms = {name: float(value) for name, value in module.terms.items()}
        self.steps.append({**terms, "images": batch[0].tolist()})


def main(folder: Path, recipes: list[str]) -> None:
    callbacks = module._callbacks
    for recipe in recipes:
        curve = Curve()
        module._callbacks = lambda *args, curve=curve, **kw: [curve, *callbacks(*args, **kw)]
        config = load_recipe(recipe, [])
        module.pretrain(config)
        rank = torch.distributed.get_rank() if config.devices > 1 else 0
        (folder / f"{config.name}-{rank}.json").write_text(json.dumps(curve.steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
