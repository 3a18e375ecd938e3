"""Kills runs, starts them again, and says what differs from a run that nothing has killed.

    python killed_runs.py FOLDER < cases.json > findings.json

A case is {"method", "loader", "kills": [[event, number], …]}: one process for each kill, then one
that ends; with "forget": name, one of the states of the processes is not taken up again. This
process imports everything once and forks the others, which cost seconds otherwise.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import solo_minent.plugin  # noqa: F401
from solo_minent import checkpoint_io, pretrain
from solo_minent.checkpoint import BACKBONE_FILE, CHECKPOINT_FILE
from solo_minent.config import load_recipe

SIZES = {
    "minent": ["method_kwargs.heads=[16,8]", "method_kwargs.hidden_dim=32"],
    "mec": [
        *("method_kwargs.hidden_dim=32", "method_kwargs.output_dim=32"),
        "method_kwargs.lamda_warmup_epochs=2",
    ],
    "twist": [
        *("method_kwargs.hidden_dim=32", "method_kwargs.output_dim=16"),
        *("method_kwargs.bunch_size=8", "method_kwargs.momentum_teacher=true"),
        "method_kwargs.self_label_epoch=1",
    ],
    "corinfomax": ["method_kwargs.hidden_dim=32", "method_kwargs.output_dim=8"],
}
# Five steps an epoch; drop path draws random numbers in the step itself.
COMMON = [
    *("max_epochs=3", "optimizer.batch_size=16", "data.num_workers=0", "accelerator=cpu"),
    *("backbone.kwargs.channels=[8,16,16,16]", "backbone.kwargs.drop_path_rate=0.3"),
    *("checkpoint.every_epochs=2", "checkpoint.every_steps=2", "evaluation.knn_every=2"),
    *("monitor_every=2", "scheduler.warmup_epochs=1"),
]
LOADERS = {
    "image_folder": ["data.train_images=90", "data.val_images=40"],
    "workers": ["data.train_images=90", "data.val_images=40", "data.num_workers=2"],
    "device": ["data.train_images=90", "data.val_images=40", "data.format=device"],
    "accumulated": ["data.train_images=90", "data.val_images=40", "accumulate_grad_batches=2"],
    "dali": ["data.dataset=custom", "data.format=dali"],
    "h5": ["data.dataset=custom", "data.format=h5"],
    "corrupt": ["data.dataset=custom", "data.format=image_folder", "data.on_corrupt=skip"],
}
PHOTOGRAPHS = ("dali", "h5", "corrupt")
VIEWS = (
    "augmentations=[{rrc: {crop_min_scale: 0.3}, horizontal_flip: {prob: 0.5}, "
    "gaussian_blur: {enabled: true, prob: 0.5}, crop_size: 16, num_crops: 2}]"
)


def photographs(folder: Path, damaged: bool) -> list[str]:
    """Overrides of a data set of JPEG files, once as folders and once as h5.

    damaged: take a copy of which every tenth file is cut off.
    """
    import h5py

    root = folder / "photographs"
    if not root.is_dir():
        digits = load_digits()
        for split, chosen in (("train", range(90)), ("val", range(90, 130))):
            with h5py.File(folder / f"{split}.h5", "w") as file:
                for i in chosen:
                    path = root / split / str(digits.target[i]) / f"{i}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels = np.repeat((digits.images[i] * 15).astype(np.uint8), 3, axis=0)
                    Image.fromarray(np.repeat(pixels, 3, axis=1)).convert("RGB").save(path)
                    group = file.require_group(str(digits.target[i]))
                    group[path.name] = np.frombuffer(path.read_bytes(), dtype=np.uint8)
            (folder / f"{split}.h5").rename(root / f"{split}.h5")
    if damaged:
        root = Path(shutil.copytree(root, folder / "damaged", dirs_exist_ok=True))
        for path in sorted((root / "train").rglob("*.jpg"))[::10]:
            path.write_bytes(path.read_bytes()[:200])
    return [f"data.root={root}", "data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]", VIEWS]


class Killer(Callback):
    """Kills its process at the n-th time that something happens, counted in that process."""

    def __init__(self, event: str, number: int) -> None:
        self.event, self.left = event, number

    def happens(self, event: str) -> None:
        if event == self.event:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, *args) -> None:
        self.happens("batch_start")

    def on_before_optimizer_step(self, *args) -> None:
        self.happens("backward")

    def on_train_batch_end(self, *args) -> None:
        self.happens("batch_end")

    def on_validation_batch_start(self, *args) -> None:
        self.happens("validation")

    def on_train_epoch_end(self, *args) -> None:
        self.happens("epoch_end")

    def on_save_checkpoint(self, *args) -> None:
        self.happens("gathering")


def run(folder: Path, case: dict, name: str, killer: Killer | None) -> None:
    loader = case["loader"]
    own = photographs(folder, loader == "corrupt") if loader in PHOTOGRAPHS else []
    config = load_recipe(
        f"digits/{case['method']}",
        [
            *(*COMMON, *SIZES[case["method"]], *LOADERS[loader], *own),
            *(f"output_dir={folder / loader}", f"name={name}"),
        ],
    )
    if killer is not None:
        callbacks, write = pretrain._callbacks, checkpoint_io.write_atomic

        def with_killer(*args, **kwargs):
            *others, saving = callbacks(*args, **kwargs)
            return [*others, killer, saving]

        def write_and_die(path, writer, *rest):
            def dying(temporary):
                writer(temporary)
                killer.happens("written")  # whole, under its temporary name

            write(path, dying, *rest)
            killer.happens("renamed")

        pretrain._callbacks, checkpoint_io.write_atomic = with_killer, write_and_die
    if killer is None and case.get("forget"):
        callbacks = pretrain._callbacks

        def forgetful(*args, **kwargs):
            *others, saving = callbacks(*args, **kwargs)
            saving.holders[case["forget"]].load_rank_state = lambda state: None
            return [*others, saving]

        pretrain._callbacks = forgetful
    pretrain.pretrain(config)


def forked(folder: Path, case: dict, name: str, killer: Killer | None = None) -> int:
    """Status of a run in a process of its own, as `os.waitpid` gives it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(folder, case, name, killer)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def unequal(a: object, b: object, path: str = "") -> list[str]:
    """Where two checkpoints differ in a single bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [path]
        return [line for key in a for line in unequal(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if type(a) is not type(b) or len(a) != len(b):
            return [path]
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, (x, y) in pairs for line in unequal(x, y, f"{path}/{i}")]
    return [] if a == b or (a != a and b != b) else [path]


def compare(whole: Path, killed: Path) -> list[str]:
    a, b = (torch.load(f / CHECKPOINT_FILE, weights_only=True) for f in (whole, killed))
    a["solo_minent"]["config"]["name"] = b["solo_minent"]["config"]["name"]
    found = unequal(a, b)
    found += unequal(*(load_file(f / BACKBONE_FILE) for f in (whole, killed)), BACKBONE_FILE)
    for name in ("log.csv", "corrupt.txt"):
        texts = [f / name for f in (whole, killed)]
        if len({path.is_file() and path.read_bytes() for path in texts}) > 1:
            found.append(name)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    findings = []
    for case in json.load(sys.stdin):
        runs = folder / case["loader"] / "digits" / case["method"]
        if case["loader"] in PHOTOGRAPHS:
            runs = folder / case["loader"] / "custom" / case["method"]
        if not (runs / "whole" / BACKBONE_FILE).is_file():
            assert forked(folder, case, "whole") == 0, (folder / "log.txt").read_text()
        name = "_".join(f"{event}{number}" for event, number in case["kills"])
        name += case.get("forget", "")
        statuses = [forked(folder, case, name, Killer(*kill)) for kill in case["kills"]]
        killed = sum(os.WIFSIGNALED(s) and os.WTERMSIG(s) == signal.SIGKILL for s in statuses)
        ended = forked(folder, case, name)
        found = compare(runs / "whole", runs / name) if ended == 0 else ["did not end"]
        if found:
            print((folder / "log.txt").read_text()[-4000:], file=sys.stderr)
        findings.append({**case, "killed": killed, "differs": found})
        print(json.dumps(findings[-1]), file=sys.stderr)
    print(json.dumps(findings))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
