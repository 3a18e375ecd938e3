"""Means of an epoch: weights, restart, devices left alone."""

import pytest
import torch

from solo_minent.meter import Meter

CPU = torch.device("cpu")


def test_means_weigh_what_was_added():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": 2.0}, weight=3)
    meter.add({"a": torch.tensor(5.0), "b": 4.0})
    meter.add({"c": torch.tensor([7.0])})
    assert meter.means(CPU) == {"a": 2.0, "b": 2.5, "c": 7.0}
    meter.reset()
    assert meter.means(CPU) == {}


def test_sums_are_float64_and_without_gradient():
    meter, value = Meter(), torch.tensor(0.1, requires_grad=True)
    for _ in range(1000):
        meter.add({"a": value})
    ((total, weight),) = meter.rank_state().values()
    assert weight == 1000 and total == pytest.approx(1000 * float(value), rel=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_an_interrupted_mean_is_the_whole_one_bit_for_bit(cut):
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double() * 1e3
    whole, first, second = Meter(), Meter(), Meter()
    for row in values:
        whole.add({"a": row[0], "b": row[1]})
    for row in values[:cut]:
        first.add({"a": row[0], "b": row[1]})
    second.load_rank_state(first.rank_state())
    for row in values[cut:]:
        second.add({"a": row[0], "b": row[1]})
    assert second.rank_state() == whole.rank_state()
    assert second.means(CPU) == whole.means(CPU)


def test_what_is_not_added_again_after_a_restart_stays():
    meter = Meter()
    meter.load_rank_state({"stage_one": (6.0, 2.0)})
    meter.add({"stage_two": 1.0})
    assert meter.means(CPU) == {"stage_one": 3.0, "stage_two": 1.0}
