"""When a run saves."""

import pytest
import torch

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.pretrain import pretrain
from solo_minent.training import saving
from solo_minent.training.saving import RandomState, Saving


@pytest.fixture
def saves(monkeypatch):
    """Steps at which `last.ckpt` was written."""
    steps, save = [], Saving._save

    def noted(self, trainer, agreed):
        save(self, trainer, agreed)
        steps.append(torch.load(self.path, weights_only=True, mmap=True)["global_step"])

    monkeypatch.setattr(Saving, "_save", noted)
    return steps


@pytest.mark.parametrize(
    "overrides, expected",
    [  # five steps an epoch
        ([], [5, 10, 15]),
        (["checkpoint.every_epochs=2"], [10, 15]),
        (["checkpoint.every_epochs=9"], [15]),
        (["checkpoint.every_steps=2", "checkpoint.every_epochs=9"], [2, 4, 6, 8, 10, 12, 14, 15]),
        (["checkpoint.every_steps=5"], [5, 10, 15]),
        (["accumulate_grad_batches=2", "checkpoint.every_steps=2"], [2, 3, 4, 6, 8, 9]),
    ],
)
def test_steps_and_epochs(tiny_run, saves, overrides, expected):
    pretrain(tiny_run("corinfomax", "max_epochs=3", "evaluation.knn_every=0", *overrides))
    assert saves == expected


def test_minutes(tiny_run, saves, monkeypatch):
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(saving.time, "monotonic", lambda: float(next(clock)))
    settings = ["checkpoint.every_minutes=1", "checkpoint.every_epochs=9"]
    pretrain(tiny_run("mec", "max_epochs=2", "evaluation.knn_every=0", *settings))
    assert saves[-1] == 10 and 2 <= len(saves) < 10


def test_random_numbers_go_on(monkeypatch):
    import random

    import numpy as np

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    np.random.standard_normal()  # leaves half of a pair for the next
    state = RandomState().rank_state()
    expected = draw(), np.random.standard_normal()
    draw()
    RandomState().load_rank_state(state)
    assert (draw(), np.random.standard_normal()) == expected


def test_a_checkpoint_needs_no_pickle(tiny_run):
    folder = pretrain(tiny_run("twist", "max_epochs=1", "evaluation.knn_every=0"))
    checkpoint = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    assert checkpoint["solo_minent"]["ranks"][0].keys() == {"random", "meter", "monitors"}


def test_an_answer_to_a_question_from_before_a_save_is_none(monkeypatch):
    """Processes agree a step late: by then the minutes that made one ask may be saved."""
    monkeypatch.setattr(saving, "is_distributed", lambda: True)
    answers = iter([0, saving.SAVE, saving.SAVE, 0, saving.SAVE, saving.SAVE + 15])
    saver = object.__new__(Saving)
    saver.agreement = type("Agreement", (), {"largest": lambda self, own: next(answers)})()
    saver._wanted, saver._stale, saver.path = lambda: 0, False, None
    trainer = type("Trainer", (), {"save_checkpoint": lambda self, path: None, "global_step": 1})()
    done = []
    for _ in range(6):
        agreed = saver._agreed()
        done.append(agreed)
        if agreed == saving.SAVE:
            saver._save(trainer, agreed)
    assert done == [0, saving.SAVE, 0, 0, saving.SAVE, saving.SAVE + 15]
