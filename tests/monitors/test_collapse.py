"""Which numbers are a collapse, and that it is said once."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from solo_minent.methods import available
from solo_minent.monitors import collapse
from solo_minent.monitors.collapse import PATIENCE, Watch, signs

HEALTHY = {"embedding_std": 0.9, "effective_rank": 30.0}
OF_CLASSES = {"class_usage": 0.9, "sharpness": 0.2, "dead_classes": 3.0}


@dataclass
class Case:
    method: str
    figures: dict
    key: str
    words: str
    params: dict = field(default_factory=dict)


CASES = [
    Case("mec", {"embedding_std": 0.01}, "embedding_std", "all images get the same embedding"),
    Case("mec", {"effective_rank": 1.2}, "effective_rank", "effective rank 1.20 of 64"),
    Case(
        "minent",
        {"class_usage": 0.004, "sharpness": 0.003, "dead_classes": 27},
        "classes",
        "few classes take all images .*27 of 4080 classes were given to no image",
    ),
    Case(
        "twist",
        {"class_usage": 1.0, "sharpness": 0.995, "dead_classes": 0},
        "classes",
        "predictions do not depend on the image",
    ),
    Case(
        "mec", {"spectral_radius": 1.7}, "series", "may fall without bound .*spectral radius 1.70"
    ),
    Case("mec", {"spectral_radius": 1.2, "loss": -1.5}, "series", "loss -1.5, below the -1"),
    Case(
        "corinfomax",
        {"logdet1": -64 * 5.0, "logdet2": -64 * 12.0},
        "covariance",
        "log-determinant -12.0 a dimension, from -4.2 .isotropic. to -18.4",
        {"output_dim": 64, "eps": 1e-8},
    ),
]


def method(name, **params):
    made = available()[name].Params(**params)
    return SimpleNamespace(name=name, params=made, features_dim=64)


def logged(figures):
    extra = {"train_mec_loss_epoch": figures["loss"]} if "loss" in figures else {}
    return {f"monitor_{k}": v for k, v in {**HEALTHY, **figures}.items() if k != "loss"} | extra


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.key}")
def test_signs(case):
    import re

    found = signs(method(case.method, **case.params), logged(case.figures), rows=128)
    assert [sign.key for sign in found] == [case.key]
    assert re.search(case.words, found[0].seen), found[0].seen
    assert found[0].advice.startswith("Try ")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("minent", OF_CLASSES),
        ("twist", OF_CLASSES),
        # Unsure predictions that differ, and sure ones of few classes, are no collapse.
        ("twist", {"class_usage": 1.0, "sharpness": 0.97, "dead_classes": 0.0}),
        ("twist", {"class_usage": 0.6, "sharpness": 0.05, "dead_classes": 90.0}),
        ("mec", {"spectral_radius": 1.3, "loss": -0.99}),
        ("corinfomax", {"logdet1": -64 * 8.0, "logdet2": -64 * 9.0}),
    ],
)
def test_health(name, figures):
    params = {"output_dim": 64} if name == "corinfomax" else {}
    assert signs(method(name, **params), logged(figures), rows=128) == []


def test_every_method_has_advice():
    assert {case.method for case in CASES} <= collapse.ADVICE.keys()


def test_a_method_without_figures_of_its_own_is_watched_too():
    stranger = SimpleNamespace(name="stranger", features_dim=8)
    assert signs(stranger, logged({}), rows=128) == []
    assert signs(stranger, logged({"effective_rank": 1.0}), rows=4)[0].seen.count("1.00 of 4")


BAD = logged({"effective_rank": 1.1})


def test_said_once_and_only_when_it_lasts():
    watch, mec = Watch(), method("mec")
    for epoch in range(1, PATIENCE):
        assert watch.judge(mec, BAD, 128, epoch) is None
    assert watch.judge(mec, logged({}), 128, PATIENCE) is None  # it recovered: counted anew
    start = PATIENCE + 1
    for epoch in range(start, start + PATIENCE - 1):
        assert watch.judge(mec, BAD, 128, epoch) is None
    message = watch.judge(mec, BAD, 128, start + PATIENCE - 1)
    assert message.startswith(f"warning: this run is collapsing, since epoch {start}: effective")
    assert "\n" not in message
    for epoch in range(start + PATIENCE, start + PATIENCE + 5):
        assert watch.judge(mec, BAD, 128, epoch) is None


def test_signs_that_alternate_do_not_add_up():
    watch, mec = Watch(), method("mec")
    other = logged({"embedding_std": 0.0})
    for epoch in range(1, 9, 2):
        assert watch.judge(mec, BAD, 128, epoch) is None
        assert watch.judge(mec, other, 128, epoch + 1) is None


def test_a_restart_goes_on_counting_and_does_not_repeat():
    first, second, third, mec = Watch(), Watch(), Watch(), method("mec")
    for epoch in range(3, 2 + PATIENCE):
        assert first.judge(mec, BAD, 128, epoch) is None
    second.load_state_dict(first.state_dict())
    assert "since epoch 3" in second.judge(mec, BAD, 128, 2 + PATIENCE)
    third.load_state_dict(second.state_dict())
    assert third.judge(mec, BAD, 128, 3 + PATIENCE) is None
    assert first.judge(mec, BAD, 128, 2 + PATIENCE)  # its state was copied, not shared
