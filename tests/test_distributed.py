"""Two gloo ranks give the value and the gradient of one process on the concatenated batch.

One pair of processes runs every case once (this file as a script); the tests read what it wrote.
Each case is `features -> {"value": scalar, …}`: rank r gets its half of the rows, a shared
weight turns rows into features, and what is compared is the value on each rank, the average of the
weight's gradients over ranks (what DDP applies) and each rank's row gradients divided by W.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from solo_minent import distributed
from solo_minent.errors import UserError
from solo_minent.losses import (
    CorInfoMaxLoss,
    mec_loss_func,
    minent_loss_func,
    minent_targets,
    target_entropy,
    twist_loss_func,
    twist_multicrop_loss_func,
    twist_self_label_loss_func,
    twist_teacher_loss_func,
)
from solo_minent.methods.twist import BunchNorm

WORLD = 2
TIMEOUT_S = 120
REPOSITORY = Path(__file__).parents[1]


def minent(norm):
    def run(f):
        heads = [[x, x[:, :5] * 2 - x[:, 1:6]] for x in f[:2]]
        targets = minent_targets(heads[0], norm)
        return {
            "value": minent_loss_func(*heads, norm),
            "rows": torch.stack(targets, dim=1),
            "same": target_entropy(targets, [8, 5]),
        }

    return run


def mec(order, lamda_inv):
    return lambda f: {"value": mec_loss_func(*f[:4], lamda_inv, order)}


def corinfomax(f):
    criterion = CorInfoMaxLoss(f[0].shape[1], 25.0, la_R=0.3, la_mu=0.2)
    losses = [criterion(f[k], f[k + 1]) for k in range(3)]
    assert len(set(losses)) == 3
    state = torch.cat([b.flatten() for b in criterion.buffers()])
    return {"value": sum(losses), "same": state}


def self_label_one_sided(f):
    # Rows of the second half are never confident: its rank selects nothing.
    rows = len(f[0]) * distributed.world_size()
    first_half = torch.arange(rows) < rows // 2
    first_half = first_half.view(distributed.world_size(), -1)[distributed.rank()]
    f = [torch.where(first_half[:, None], x * 3, x * 0.01) for x in f]
    return {"value": twist_self_label_loss_func(f, 0.4)}


def bunch_norm(bunch_size):
    def run(f):
        norm = BunchNorm(f[0].shape[1], bunch_size).to(f[0].dtype)
        value = twist_loss_func(*norm(f[:2]))
        copy.deepcopy(norm)  # has a process group by now
        whole = bunch_size == len(f[0]) * distributed.world_size()
        return {"value": value} | ({"same": norm.running_var} if whole else {})

    return run


def collectives(f):
    x, y, z = f[0], f[1].view(-1, 2, 4), f[2].detach()
    everyone = distributed.gather(x)
    packed = distributed.gather_packed(x, y, z)
    weights = torch.arange(everyone.numel(), dtype=x.dtype).view_as(everyone).sin()
    value = (everyone * weights).sum() + (packed[1] ** 2).sum() + packed[2].sum()
    value = value + distributed.global_mean(x.square().mean()) * 5
    same = torch.cat(
        [everyone.flatten(), packed[0].flatten(), packed[1].flatten(), packed[2].flatten()]
    ).detach()
    columns, top = x.detach().sum(dim=0), x.detach().amax(dim=0)
    kept = columns.clone(), top.clone()
    same = torch.cat([same, distributed.global_sum(columns), distributed.global_max(top)])
    assert torch.equal(columns, kept[0]) and torch.equal(top, kept[1])
    return {"value": value, "same": same}


CASES = {
    # name: (case, rows of the global batch)
    "collectives": (collectives, 12),
    "minent bn": (minent("bn"), 12),
    "minent softmax": (minent("softmax"), 12),
    "minent l2": (minent("l2"), 12),
    "minent none": (minent("none"), 12),
    "minent one row a rank": (minent("bn"), 2),
    "mec order 4 feature-wise": (mec(4, 2.0), 12),
    "mec order 4 batch-wise": (mec(4, 2.0), 6),
    "mec order 1": (mec(1, 2.0), 12),
    "mec order 3": (mec(3, 1.0), 12),
    "mec one row a rank": (mec(4, 2.0), 2),
    "twist": (lambda f: {"value": twist_loss_func(f[0], f[1], -0.6, 0.9, 0.7)}, 12),
    "twist with a bunch over both ranks": (bunch_norm(12), 12),
    "twist with bunches within a rank": (bunch_norm(3), 12),
    "twist multi-crop": (lambda f: {"value": twist_multicrop_loss_func(f, 2, -0.6, 0.9, 0.7)}, 12),
    "twist teacher": (
        lambda f: {"value": twist_teacher_loss_func(f, [f[3], f[2]], -0.6, 0.9, 0.7)},
        12,
    ),
    "twist self-label": (lambda f: {"value": twist_self_label_loss_func(f, 0.6, 0.7)}, 12),
    "twist self-label teacher": (
        lambda f: {"value": twist_self_label_loss_func(f, 0.5, teacher_logits=[f[3], f[2]])},
        12,
    ),
    "twist self-label on one rank only": (self_label_one_sided, 12),
    "twist self-label of nobody": (
        lambda f: {"value": twist_self_label_loss_func(f, 0.05)},
        12,
    ),
    "corinfomax, three steps": (corinfomax, 12),
}


def run_case(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    case, rows = CASES[name]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, rows, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 8, dtype=torch.float64, generator=generator).requires_grad_()
    x = x[:, rank * rows // world : (rank + 1) * rows // world].clone().requires_grad_()
    result = case(list((x @ weight).unbind()))
    result["value"].backward()
    if world > 1:
        dist.all_reduce(weight.grad)
        weight.grad /= world
    return {
        **{key: value.detach() for key, value in result.items()},
        "weight_grad": weight.grad,
        "row_grad": x.grad / world,
    }


def gather_gradient(rank: int) -> torch.Tensor:
    """Gradient of rank-dependent functions of the gathered rows: rank r's function is (r + 1) S."""
    x = torch.zeros(2, 3).requires_grad_()
    y = distributed.gather(x)
    ((rank + 1) * y * torch.arange(y.numel()).view_as(y)).sum().backward()
    return x.grad


def worker(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD
    )
    result = {name: run_case(name, rank, WORLD) for name in CASES}
    result["identity"] = {
        "is_distributed": torch.tensor(distributed.is_distributed()),
        "world_size": torch.tensor(distributed.world_size()),
        "rank": torch.tensor(distributed.rank()),
    }
    result["gather gradient"] = {"x": gather_gradient(rank)}
    torch.save(result, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank wrote: [{case: {name: tensor}}]. A rank that hangs is killed."""
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
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(ranks, name):
    one = run_case(name, 0, 1)
    both = [rank[name] for rank in ranks]

    def same(actual, expected):
        # Below 1e-6 of the largest entry nothing but rounding is left.
        atol = 1e-6 * expected.abs().max().item() if expected.is_floating_point() else 0
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=atol)

    for result in both:
        same(result["value"], one["value"])
        same(result["weight_grad"], one["weight_grad"])
        if "same" in one:
            same(result["same"], one["same"])
    same(torch.cat([r["row_grad"] for r in both], dim=1), one["row_grad"])
    if "rows" in one:
        same(torch.cat([r["rows"] for r in both]), one["rows"])
    # The comparison would be empty without a gradient (nobody selected: there is none).
    assert (one["weight_grad"].abs().max() > 1e-6) == (name != "twist self-label of nobody")


def test_gather_sums_the_gradients_of_all_ranks(ranks):
    expected = (1 + 2) * torch.arange(12.0).view(2, 2, 3)
    for rank in range(WORLD):
        assert torch.equal(ranks[rank]["gather gradient"]["x"], expected[rank])


def test_state_is_bitwise_equal_on_all_ranks(ranks):
    first, second = (rank["corinfomax, three steps"]["same"] for rank in ranks)
    assert torch.equal(first, second)


def test_ranks_know_who_they_are(ranks):
    for expected, rank in enumerate(ranks):
        identity = {key: value.item() for key, value in rank["identity"].items()}
        assert identity == {"is_distributed": True, "world_size": WORLD, "rank": expected}


def test_identity_on_one_process():
    assert not distributed.is_distributed()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.gather_packed(x, x) == (x, x)
    assert distributed.global_mean(x) is x
    for statistic in (distributed.global_sum(x), distributed.global_max(x)):
        assert torch.equal(statistic, x) and not statistic.requires_grad


def test_gather_refuses_what_cannot_be_stacked():
    x = torch.zeros(3, 2)
    with pytest.raises(UserError, match="got a scalar"):
        distributed.gather(x.sum())
    with pytest.raises(UserError, match="differ in rows or dtype"):
        distributed.gather_packed(x, x[:2])
    with pytest.raises(UserError, match="differ in rows or dtype"):
        distributed.gather_packed(x, x.double())


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
