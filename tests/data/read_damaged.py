"""Reads folders of images with every loader and prints what came of it, a JSON line a pass.

Run as `python read_damaged.py <jobs.json>` with a list of [root, loader, workers, on_corrupt]. A
process of its own: a decoder that crashes or hangs ends this one, and its peak memory is its own.
"""

from __future__ import annotations

import gc
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import psutil
import torch

from solo_minent.data.loaders import eval_loader, pretrain_loader
from solo_minent.errors import UserError
from solo_minent.schema import DaliConfig, DataConfig, OptimizerConfig, RunConfig

BATCH = 20
VIEW = {"rrc": {"crop_min_scale": 0.2}, "num_crops": 2, "crop_size": 16}


def read(root: str, name: str, workers: int, on_corrupt: str) -> dict:
    kind, _, evaluated = name.partition("-")
    settings = {"root": root, "format": kind, "on_corrupt": on_corrupt, "num_workers": workers}
    config = RunConfig(
        data=DataConfig(dataset="custom", image_size=16, **settings),
        augmentations=[VIEW],
        optimizer=OptimizerConfig(batch_size=BATCH),
        dali=DaliConfig(device="cpu"),
        accelerator="cpu",
        seed=1,
    )
    sizes, seen, error, corrupt = [], [], None, []
    start = time.monotonic()
    try:
        loader = eval_loader(config, "train", BATCH) if evaluated else pretrain_loader(config)
        for batch in loader:
            if not evaluated:
                seen += batch[0].tolist()
                batch = batch[1]
            assert all(view.isfinite().all() for view in batch if view.is_floating_point())
            sizes.append(len(batch[0]))
        if evaluated:
            corrupt = sorted(loader.dataset.corrupt)
        else:
            found = loader.readable.corrupt.nonzero().flatten().tolist()
            corrupt = [loader.readable.images.name_of(index) for index in found]
            seen = [loader.readable.images.name_of(index) for index in seen]
    except UserError as problem:
        error = str(problem)
    seconds = time.monotonic() - start
    loader = batch = None
    return {
        "sizes": sizes,
        "seen": [Path(each).name for each in seen],
        "corrupt": [Path(each).name for each in corrupt],
        "error": error,
        "seconds": seconds,
        "left": left_over(),
    }


def left_over() -> int:
    """Processes of this one that are still there 10 s later, but for those that start others."""
    gc.collect()
    for _ in range(100):
        below = psutil.Process().children()
        helpers = [each for each in below if {"forkserver", "tracker"} & words(each)]
        others = psutil.Process().children(recursive=True)
        left = sum(each not in helpers and running(each) for each in others)
        if not left:
            return 0
        time.sleep(0.1)
    return left


def running(process: psutil.Process) -> bool:
    """False for one that has ended and waits to be asked for its exit code."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def words(process: psutil.Process) -> set[str]:
    try:
        text = " ".join(process.cmdline())
    except psutil.Error:
        return set()
    return {word for word in ("forkserver", "tracker") if word in text}


def peak() -> float:
    """MiB, of this process or the largest of those it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in whose) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in itertools.chain(json.loads(Path(sys.argv[1]).read_text())):
        print(json.dumps({"job": job, **read(*job), "peak": peak()}), flush=True)
