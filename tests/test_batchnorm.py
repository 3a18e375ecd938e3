"""Batch norm over all processes is nn.BatchNorm over all their rows; what it does besides stays.

Each number of gloo ranks runs every case once (this file as a script); the tests read what it
wrote and compare it with one process on the concatenated rows, in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from solo_minent.batchnorm import BatchNormSync, GlobalBatchNorm
from solo_minent.errors import UserError

TIMEOUT_S = 120
REPOSITORY = Path(__file__).parents[1]
SPLITS = {2: (3, 8), 3: (4, 1, 6)}  # rows of each rank
CASES = {
    # name: (layer, size of a row)
    "1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "1d with length": (lambda: nn.BatchNorm1d(4), (4, 5)),
    "2d": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (4, 2, 1, 3)),
    "without weights": (lambda: nn.BatchNorm1d(4, affine=False), (4,)),
    "cumulative mean": (lambda: nn.BatchNorm1d(4, momentum=None), (4,)),
    "no running statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 2)),
    "eps, momentum": (lambda: nn.BatchNorm1d(4, eps=0.3, momentum=0.4), (4,)),
    "activation": (lambda: BatchNormAct2d(4, act_layer=nn.SiLU), (4, 3, 2)),
}


def run_case(name: str, rows: slice, world: int) -> dict[str, torch.Tensor]:
    """Two steps in training, then one in evaluation, of these rows of the global batch."""
    build, size = CASES[name]
    torch.manual_seed(3)
    layer = build().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if world > 1:
        BatchNormSync(torch_layer=False).apply(layer)
    result = {}
    for step in range(2):
        # Far from zero: one pass over the squares would lose digits.
        x = (torch.randn(sum(SPLITS[2]), *size, dtype=torch.float64) * 2 + 100)[rows]
        x.requires_grad_()
        y = layer(x)
        wanted = torch.randn(sum(SPLITS[2]), *size, dtype=torch.float64)[rows]
        # On W ranks a loss leaves W times the slice of the full gradient (solo_minent.distributed).
        (world * (y * wanted).sum()).backward()
        result |= {f"row {step} value": y.detach(), f"row {step} gradient": x.grad / world}
    for key, parameter in layer.named_parameters():
        if world > 1:  # what DistributedDataParallel does
            dist.all_reduce(parameter.grad)
        result[f"{key} gradient"] = parameter.grad / world
    layer.eval()
    if layer.track_running_stats:  # else those of the rows at hand, as torch's SyncBatchNorm
        result["row evaluation"] = layer(x).detach()
    return {**result, **layer.state_dict()}


def worker(rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    split = SPLITS[world]
    rows = slice(sum(split[:rank]), sum(split[: rank + 1]))
    result = {name: run_case(name, rows, world) for name in CASES}
    layer = BatchNormSync(torch_layer=False).apply(nn.BatchNorm1d(4))
    few = torch.ones(1 if rank == 0 else 0, 4)
    try:
        layer(few)
    except ValueError as error:
        result["one row"] = {str(error): torch.zeros(())}
    half = layer(torch.arange(8.0).view(2, 4).bfloat16() + rank)
    result["bfloat16"] = {"value": half.detach(), "mean": layer.running_mean}
    torch.save(result, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=SPLITS)
def ranks(request, tmp_path_factory):
    """What each rank wrote: [{case: {name: tensor}}]. A rank that hangs is killed."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_one_process_on_all_rows(ranks, name):
    expected = run_case(name, slice(None), 1)
    for key, value in expected.items():
        found = [rank[name][key] for rank in ranks]
        if key.startswith("row "):
            torch.testing.assert_close(torch.cat(found), value, rtol=1e-10, atol=1e-10)
        else:
            for each in found:
                torch.testing.assert_close(each, value, rtol=1e-10, atol=1e-10)
    assert all(rank[name].keys() == expected.keys() for rank in ranks)


def test_one_row_on_all_ranks_together_is_refused(ranks):
    for rank in ranks:
        (message,) = rank["one row"]
        assert message.startswith("Expected more than 1 value per channel when training")


def test_low_precision_is_summed_in_float32(ranks):
    rows = torch.cat([torch.arange(8.0).view(2, 4) + rank for rank in range(len(ranks))])
    value = torch.cat([rank["bfloat16"]["value"] for rank in ranks])
    assert value.dtype == torch.bfloat16 and ranks[0]["bfloat16"]["mean"].dtype == torch.float32
    expected = nn.BatchNorm1d(4)(rows)
    torch.testing.assert_close(value.float(), expected.detach(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(ranks[0]["bfloat16"]["mean"], 0.1 * rows.mean(0))


@pytest.mark.parametrize("torch_layer", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_a_converted_network_keeps_its_outputs_and_its_names(name, torch_layer):
    """MobileNet's layers are BatchNormAct2d: a conversion to plain ones loses the activations."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0)
    before = {key: type(layer) for key, layer in network.named_modules()}
    batch = torch.randn(4, 3, 64, 64)
    for layer in network.modules():  # statistics that matter
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = network.eval()(batch)
    sync = BatchNormSync(torch_layer)
    assert sync.apply(network) is network
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) > 10
    assert all(isinstance(layer, sync.layer) for layer in layers)
    # torch's layer takes CPU tensors in evaluation alone.
    assert torch.equal(network(batch), expected)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key
    if not torch_layer:
        network.train()(batch)
    assert sync.revert(network) is network
    assert {key: type(layer) for key, layer in network.named_modules()} == before
    assert not any("process_group" in vars(layer) for layer in layers)


def test_on_one_process_it_is_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3)
    for plain in (nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.SiLU)):
        other = type(plain)(4, **({"act_layer": nn.SiLU} if hasattr(plain, "act") else {}))
        BatchNormSync(torch_layer=False).apply(other)
        assert isinstance(other, GlobalBatchNorm)
        for _ in range(2):
            assert torch.equal(other(x), plain(x))
        assert torch.equal(other.eval()(x), plain.eval()(x))
        assert torch.equal(other.running_var, plain.running_var)


@pytest.mark.parametrize("torch_layer", [False, True])
def test_a_batch_norm_with_a_forward_of_its_own_is_refused(torch_layer):
    network = nn.Sequential(nn.BatchNorm2d(4), SplitBatchNorm2d(4, num_splits=2))
    with pytest.raises(UserError, match="SplitBatchNorm2d has a forward of its own"):
        BatchNormSync(torch_layer).apply(network)
    assert type(network[0]) is nn.BatchNorm2d


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
