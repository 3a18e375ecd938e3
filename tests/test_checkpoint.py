"""What a run keeps besides its checkpoint: the backbone and the results."""

import json
import multiprocessing

import pytest
import torch
from torch import nn

from solo_minent.checkpoint import add_result, read_results, save_backbone
from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.weights import load_weights


def network(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def test_backbone_round_trip(tmp_path):
    config = load_recipe("digits/mec")
    path, one, other = tmp_path / "b.safetensors", network(), network()
    save_backbone(path, one.state_dict(), config)
    assert load_weights(path, other).line == "loaded 7/7"
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_result_replaces_the_same_protocol_only(tmp_path):
    for target, protocol, top1 in (("a", "knn", 1), ("a", "linear", 2), ("a", "knn", 3)):
        add_result(tmp_path, {"target": target, "protocol": protocol, "top1": top1})
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [(r["protocol"], r["top1"]) for r in stored] == [("linear", 2), ("knn", 3)]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train_images": 500},
        {"test_images": 50},
        {"root": "/other"},
        {"image_size": 64},
        {"normalization": [[0.5] * 3, [0.2] * 3]},
        {"dataset": "cifar100"},
        {"evaluation": "transfer"},
    ],
)
def test_results_of_other_data_or_seeds_stand_side_by_side(tmp_path, change):
    first = {"target": "a", "evaluation": "knn", "dataset": "cifar10", "protocol": "5-NN"}
    first |= {"seed": 0, "train_images": 50000, "test_images": 10000, "image_size": 32}
    for result in (first | {"top1": 1}, first | change | {"top1": 2}, first | {"top1": 3}):
        add_result(tmp_path, result)
    assert [result["top1"] for result in read_results(tmp_path)] == [2, 3]


def test_processes_add_results_at_the_same_time(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = [(tmp_path, {"target": str(n), "protocol": "knn"}) for n in range(40)]
        pool.starmap(add_result, results)
    assert len(read_results(tmp_path)) == 40


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"null", b"\xff\xfe"])
def test_damaged_results_are_neither_read_nor_replaced(tmp_path, content):
    path = tmp_path / "results.json"
    assert read_results(tmp_path) == []
    path.write_bytes(content)
    for call in (lambda: read_results(tmp_path), lambda: add_result(tmp_path, {"target": "a"})):
        with pytest.raises(UserError, match=f"results are damaged: {path}.*mv {path}") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
