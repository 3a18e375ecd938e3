"""The losses against their plain formulas: the same values, so that the times are comparable."""

import copy

import pytest
import torch

from solo_minent.bench import losses, plain
from solo_minent.bench.losses import bench_losses, cases, pick_devices
from solo_minent.errors import UserError
from solo_minent.methods.minent import MultiHead

CPU = torch.device("cpu")
CASES = [pytest.param(case, id=f"{case.loss} {case.shape}") for case in cases(tiny=True)]


@pytest.mark.parametrize("case", CASES)
def test_plain_and_ours_agree_in_value_and_gradient(case):
    sides = case.make(CPU, torch.float64)
    for _ in range(3):  # a state moves on, on both sides alike
        ours, theirs = (sides[name]() for name in ("ours", "plain"))
        for one, other in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
            assert one.dtype == other.dtype == torch.float64 and one.abs().sum() > 0
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_side_stays_on_its_device_and_reads_nothing_back(case):
    """The meta device stands in for a GPU: it has no values to read, and mixes with no other."""
    for run in case.make(torch.device("meta"), torch.float32).values():
        assert {tensor.device.type for part in run() for tensor in part} == {"meta"}


def test_a_step_of_the_heads_and_of_the_plain_ones_is_the_same():
    torch.manual_seed(0)
    ours = MultiHead(8, [6, 4], 5, 3).double()
    theirs = plain.Heads(8, [6, 4], 5, 3).double()
    theirs.load_state_dict(ours.state_dict())
    start = copy.deepcopy(theirs.state_dict())
    feats = torch.randn(16, 8, dtype=torch.float64)
    for heads in (ours, theirs):
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
        sum(g.square().mean() for g in heads(feats)).backward()
        optimizer.step()
    after = ours.state_dict()
    assert any(not torch.equal(after[key], start[key]) for key in start)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(after[key], value, rtol=1e-9, atol=1e-12, msg=key)


def test_order_and_temperature_are_those_of_ours():
    from solo_minent.losses import mec_loss_func, twist_loss_func

    torch.manual_seed(0)
    z = torch.randn(4, 12, 6, dtype=torch.float64)
    for order in (1, 2, 3, 6):
        torch.testing.assert_close(plain.mec(*z, 3.0, order), mec_loss_func(*z, 3.0, order))
    settings = {"lam1": -0.6, "lam2": 0.5, "tau": 0.4}
    torch.testing.assert_close(plain.twist(*z[:2], **settings), twist_loss_func(*z[:2], **settings))


def test_every_loss_is_a_row_with_time_and_memory():
    rows = bench_losses(["cpu"], pairs=2, seconds=1e-4, tiny=True)
    assert [row["loss"] for row in rows] == [case.loss for case in cases(tiny=True)]
    for row in rows:
        assert 0 < row["low"] <= row["times faster"] <= row["high"] and row["pairs"] == 2
        assert min(row[f"{unit} {side}"] for unit in ("ms", "MiB") for side in ("ours", "plain"))
        assert (row["device"], row["precision"]) == ("cpu", "32")


def test_the_shapes_are_those_of_the_goals():
    shapes = [f"{case.loss} {case.shape}" for case in cases()]
    assert shapes[:3] == [
        "mec n=1024 d=2048 order 4",
        "corinfomax n=1024 d=512",
        "corinfomax n=1024 d=64",
    ]
    assert shapes[-1] == "minent heads n=256 512-1024-1024-2048…16 2 views"


def test_one_loss_can_be_asked_for():
    rows = bench_losses(losses=["twist"], pairs=1, seconds=1e-4, tiny=True)
    assert {row["loss"] for row in rows} == {"twist"}


def test_what_cannot_be_measured_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(losses, "_measure", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, message in [
        ({"losses": ["vicreg"]}, "--loss is unknown: vicreg"),
        ({"devices": ["tpu"]}, "--device is unknown: tpu"),
        ({"devices": ["cuda"]}, "--device is not there: cuda. This machine has cpu"),
        ({"pairs": 0}, "--pairs is out of range: 0"),
        ({"seconds": 0.0}, "--seconds is out of range: 0.0"),
    ]:
        with pytest.raises(UserError, match=message):
            bench_losses(**arguments)
    assert pick_devices() == [CPU]


def test_on_a_gpu_the_heads_are_measured_in_bfloat16_too(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = []
    monkeypatch.setattr(losses, "_measure", lambda case, *rest: asked.append((case.loss, *rest)))
    bench_losses(["cuda"], ["minent", "minent heads"], pairs=3)
    half = [(loss, device.type, half) for loss, device, half, *_ in asked]
    assert half == [
        ("minent", "cuda", False),
        ("minent heads", "cuda", False),
        ("minent heads", "cuda", True),
    ]


def test_autocast_is_what_a_half_precision_row_runs_under():
    heads = next(case for case in cases(tiny=True) if case.half)
    outputs, _ = losses._autocast(heads.make(CPU, torch.float32)["ours"], CPU)
    assert {g.dtype for g in outputs} == {torch.bfloat16}
