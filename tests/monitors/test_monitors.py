"""The callback in real runs: what it logs, what it leaves alone, two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from solo_minent import monitors as package
from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.meter import Meter
from solo_minent.methods import Progress, Views, available
from solo_minent.monitors import Monitors, figures
from solo_minent.pretrain import pretrain

METHODS = sorted(available())
WORLD = 2
REPOSITORY = Path(__file__).parents[2]
OF_ALL = {"effective_rank", "embedding_std", "alignment", "uniformity"}
OF_CLASSES = {"class_usage", "sharpness", "dead_classes"}
OWN = {
    "minent": OF_CLASSES,
    "twist": OF_CLASSES,
    "mec": {"coding_length", "spectral_radius"},
    "corinfomax": {"logdet1", "logdet2", "smallest_eigenvalue"},
}


# Batches between two looks, and the looks at two epochs of five steps, counted from their ends.
LOOKS = {
    "corinfomax": (1, [*range(10)]),
    "mec": (50, [4, 9]),
    "minent": (2, [0, 2, 4, 5, 7, 9]),
    "twist": (3, [1, 4, 6, 9]),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_watched_run_ends_bit_for_bit_as_an_unwatched_one(tiny_run, name, monkeypatch):
    watched, steps = [], []
    measure = Monitors.measure

    def noted(self, method, views, progress):
        watched.append(method)
        steps.append(progress.step)
        return measure(self, method, views, progress)

    monkeypatch.setattr(Monitors, "measure", noted)
    every, looks = LOOKS[name]
    without, with_them = (
        pretrain(tiny_run(name, f"monitor_every={n}", f"name=every{n}", "evaluation.knn_every=0"))
        for n in (0, every)
    )
    assert steps == looks and watched[0].observer is None
    a, b = (torch.load(run / CHECKPOINT_FILE, weights_only=True) for run in (without, with_them))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    moments = [run["optimizer_states"][0]["state"].values() for run in (a, b)]
    for mine, other in zip(*moments, strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    old, new = (pd.read_csv(run / "log.csv") for run in (without, with_them))
    added = {f"monitor_{figure}" for figure in OF_ALL | OWN[name]}
    assert set(new.columns) - set(old.columns) == added
    assert new[sorted(added)].notna().all().all()
    pd.testing.assert_frame_equal(new[list(old.columns)], old)
    assert b["callbacks"]["Monitors"]["warned"] is None


class Killed(Exception):
    pass


def test_a_collapsed_run_is_told_once_across_a_restart(tiny_run, monkeypatch, capsys):
    build = available()["minent"].build

    def constant_head(self, params):
        build(self, params)
        for head in self.projector.heads:
            nn.init.zeros_(head[-1].weight)
            head.requires_grad_(False)

    monkeypatch.setattr(available()["minent"], "build", constant_head)
    config = tiny_run("minent", "max_epochs=6", "evaluation.knn_every=0")
    with monkeypatch.context() as patch:
        from solo_minent.training.saving import Saving

        save = Saving.on_train_epoch_end

        def save_then_die(self, trainer, module):
            save(self, trainer, module)
            if trainer.current_epoch == 3:
                raise Killed

        patch.setattr(Saving, "on_train_epoch_end", save_then_die)
        with pytest.raises(Killed):
            pretrain(config)
    errors = capsys.readouterr().err
    assert errors.count("warning: this run is collapsing, since epoch 1: ") == 1
    assert "all images get the same embedding" in errors
    pretrain(config)
    assert "collapsing" not in capsys.readouterr().err


# The figures of a global batch.

PARAMS = {
    "minent": {"heads": [8, 4], "hidden_dim": 16},
    "mec": {"hidden_dim": 16, "output_dim": 8, "pred_hidden_dim": 4, "eps": 4.0},
    "twist": {"hidden_dim": 16, "output_dim": 8, "bunch_size": 8},
    "corinfomax": {"hidden_dim": 16, "output_dim": 4},
}


class Trainer:
    """What the callback reads of Lightning's."""

    num_training_batches, current_epoch, is_global_zero = 1, 0, False


def views_of(name: str, rows: slice) -> Views:
    generator = torch.Generator().manual_seed(3)

    def draw(width):
        return torch.randn(16, width, generator=generator)[rows]

    feats = [draw(6), draw(6)]
    if name == "minent":
        z = [[draw(8), draw(4)], [draw(8), draw(4)]]
        made = {"targets": [[head.argmax(1) for head in heads] for heads in z]}
        return Views(feats, z, [], 2, made)
    width = PARAMS[name]["output_dim"]
    z = [draw(width), draw(width)]
    if name == "mec":
        made = {"predicted": [draw(width), draw(width)]}
        return Views(feats, z, [draw(width), draw(width)], 2, made)
    return Views(feats, z, [], 2)


def look(name: str, rows: slice) -> dict[str, float]:
    """One look at the given rows of a fixed batch of 16, by the hooks that Lightning calls."""
    torch.manual_seed(0)
    cls = available()[name]

    class Bare(cls, nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.features_dim, self.params = 6, cls.Params(**PARAMS[name])
            self.build(self.params)
            self.logged = {}
            self.meter, self.device = Meter(), torch.device("cpu")

        def log(self, key, value, **options):
            assert options.pop("rank_zero_only") is True
            self.logged[key] = float(value)
            self.meter.add({key: value})

        def log_dict(self, values, **options):
            for key, value in values.items():
                self.log(key, value, rank_zero_only=options["rank_zero_only"])

    method, callback = Bare(), Monitors(50)
    callback.on_train_start(Trainer, method)
    callback.on_train_epoch_start(Trainer, method)
    callback.on_train_batch_start(Trainer, method, None, 0)
    method.observer(method, views_of(name, rows), Progress(0, 10, 0, 10))
    callback.on_train_epoch_end(Trainer, method)
    return method.logged


def worker(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD
    )
    half = slice(8 * rank, 8 * rank + 8)
    torch.save({name: look(name, half) for name in METHODS}, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_see_the_global_batch(ranks, name):
    one = look(name, slice(None))
    assert {key.removeprefix("monitor_") for key in one} == OF_ALL | OWN[name]
    for rank in ranks:
        assert rank[name] == pytest.approx(one, rel=1e-5)
    half = look(name, slice(0, 8))
    assert half["monitor_effective_rank"] != pytest.approx(one["monitor_effective_rank"], rel=1e-3)


def test_figures_are_those_of_the_views():
    views, found = views_of("mec", slice(None)), look("mec", slice(None))
    rank = figures.effective_rank(views.feats[0]).item()
    assert found["monitor_effective_rank"] == pytest.approx(rank)
    assert found["monitor_alignment"] == pytest.approx(figures.alignment(*views.z).item())
    # Batch 16, eps 4, d 8, and still warming up: 8 * 16 * 4 / 8 at the first step.
    z1, z2 = views.made["predicted"]
    p1, p2 = views.teacher_z
    c = figures.coding(torch.stack([p1, p2]), torch.stack([z2, z1]), 64.0)
    assert found["monitor_coding_length"] == pytest.approx(c["coding_length"].item())


def test_dead_classes_are_those_of_the_whole_epoch():
    callback = Monitors(50)
    method = type("Stub", (), {"name": "twist", "params": available()["twist"].Params(
        hidden_dim=4, output_dim=6, bunch_size=2)})()  # fmt: skip
    logged = {}
    method.meter, method.device = Meter(), torch.device("cpu")
    method.log = lambda key, value, **options: logged.update({key: float(value)})
    callback.on_train_epoch_start(Trainer, method)
    callback.due = False
    for classes in ([0, 1], [1, 3]):
        z = [torch.eye(6)[classes], torch.eye(6)[classes]]
        callback.observe(method, Views([torch.zeros(2, 4)] * 2, z, [], 2), Progress(0, 2, 0, 1))
    callback.on_train_epoch_end(Trainer, method)
    assert logged == {"monitor_dead_classes": 3.0}


def test_a_large_batch_is_thinned_for_what_all_methods_share(monkeypatch):
    monkeypatch.setattr(package, "MOST_ROWS", 6)
    views, found = views_of("corinfomax", slice(None)), look("corinfomax", slice(None))
    rank = figures.effective_rank(views.feats[0][::3]).item()
    assert found["monitor_effective_rank"] == pytest.approx(rank)


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
