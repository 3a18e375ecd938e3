"""What two processes say to each other in a step: sync_ranks.py RECIPE FOLDER."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from solo_minent.config import load_recipe
from solo_minent.distributed import rank
from solo_minent.pretrain import pretrain

COLLECTIVES = [
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "reduce_scatter_tensor",
]

torch.set_num_threads(1)


class Watch(Callback):
    """From the end of the second step to the end of the third: who called what."""

    def __init__(self) -> None:
        self.calls: list[list[str]] | None = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 2:
            self.calls = []
        elif trainer.global_step == 3:
            path = Path(sys.argv[2]) / f"rank-{rank()}.json"
            path.write_text(json.dumps(self.calls))
            self.calls = None


def main() -> None:
    watch = Watch()
    for name in COLLECTIVES:
        original = getattr(dist, name, None)
        if original is None:  # all_gather_single is torch 2.14's
            continue

        @functools.wraps(original)
        def noted(*args, name=name, original=original, **kwargs):
            if watch.calls is not None:
                watch.calls.append([name, caller()])
            return original(*args, **kwargs)

        setattr(dist, name, noted)
    pretrain(load_recipe(sys.argv[1]), observers=[watch])


def caller() -> str:
    """The last file of the call that is no helper of collectives."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        if "solo_minent" in parts and parts[-1] != "distributed.py":
            return "/".join(parts[parts.index("solo_minent") + 1 :])
        if "lightning" in parts:
            break
    return "backward" if "backward" in str(traceback.extract_stack()) else "lightning"


if __name__ == "__main__":
    main()
