"""Means of an epoch: weights, restart, devices left alone."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

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


def test_a_name_beside_different_others_keeps_every_value():
    meter, second = Meter(), Meter()
    steps = [{"a": 1.0}, {"a": 1.0, "b": 5.0}, {"a": 3.0, "c": 6.0}, {"a": 3.0, "b": 7.0}]
    for step in steps[:2]:
        meter.add(step)
    second.load_rank_state(meter.rank_state())
    for step in steps[2:]:
        meter.add(step)
        second.add(step)
    expected = {"a": 2.0, "b": 6.0, "c": 6.0}
    assert meter.means(CPU) == second.means(CPU) == expected
    assert meter.rank_state() == second.rank_state()


def test_names_of_one_group_may_come_with_other_weights_after_a_restart():
    meter = Meter()
    meter.load_rank_state({"a": (6.0, 2.0), "b": (5.0, 1.0)})
    meter.add({"a": 3.0, "b": 7.0})
    assert meter.means(CPU) == {"a": 3.0, "b": 6.0}


def test_a_name_without_weight_is_left_out():
    meter = Meter()
    meter.add({"a": 1.0}, weight=0)
    assert meter.means(CPU) == {}


def _means_of(rank, folder):
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    meter = Meter()
    found = [meter.means(CPU)]
    meter.add({"train": float(rank)})
    if rank == 1:  # of the other process, all validation images are corrupt
        meter.add({"val_a": 1.0, "val_b": 2.0}, weight=3)
    found.append(meter.means(CPU))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_processes_need_not_have_the_same_names(tmp_path):
    python = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=python)
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(100) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for rank in (0, 1):
        nothing, means = json.loads((tmp_path / f"{rank}.json").read_text())
        assert nothing == {} and means == {"train": 0.5, "val_a": 1.0, "val_b": 2.0}


if __name__ == "__main__":
    _means_of(int(sys.argv[1]), sys.argv[2])
