"""The steps that are timed are training steps, and their parts make them up."""

from __future__ import annotations

import copy
import math
import os
import signal
import tempfile

import pytest
import torch

from solo_minent.bench import loop, sides, step
from solo_minent.bench.everything import WINDOWS
from solo_minent.errors import UserError
from solo_minent.host import peers
from solo_minent.host.peers import PEERS

ABOUT = ["method", "backbone", "device", "batch", "precision"]
TINY = ["accelerator=cpu", "optimizer.batch_size=16", "data.num_workers=0"]


def tiny(*methods, overrides=()):
    return step.step_configs(methods, [*TINY, *overrides], dataset="digits")


def side(method, peer=None, overrides=()):
    (config,) = tiny(method, overrides=overrides)
    return sides.Side(config, sides.one_batch(config), peer)


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_really_trains_as_ours_does(name):
    own, peer = side("minent"), side("minent", name)
    before = weights(peer.module)
    first = None
    for _ in range(4):
        peer()
        first = peer.loss.item() if first is None else first
    assert math.isfinite(peer.loss) and peer.loss < first
    parts = {name.partition(".")[0] for name in moved(peer.module, before)}
    assert {"classifier", "projector"} < parts and len(parts) == 3  # and the backbone
    assert [layer.out_features for layer in peer.module.projector if hasattr(layer, "in_features")]
    assert peer.module.projector[0].out_features == peer.module.projector[6].out_features == 2048
    assert type(peer.optimizer) is type(own.optimizer)
    rates = [{group["lr"] for group in each.optimizer.param_groups} for each in (own, peer)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_our_backbone(name):
    own, peer = side("minent"), side("minent", name)
    network = getattr(peer.module, "encoder", None) or peer.module.backbone
    assert str(network) == str(own.module.backbone)
    wanted = own.module.backbone.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("method", sides.METHODS)
def test_our_step_moves_every_weight_and_the_teacher(method):
    own = side(method)
    before = weights(own.module)
    own()
    own()  # residual blocks begin with a scale of zero
    assert math.isfinite(own.loss)
    still = {name for name, p in own.module.named_parameters() if p.requires_grad}
    still -= moved(own.module, before)
    assert all(name.endswith("bias") for name in still), still  # in front of a batch norm
    if own.module.teacher:
        assert any(name.startswith("teacher_") for name in moved(own.module, before))
    assert own.module.meter.means(torch.device("cpu"))


@pytest.mark.parametrize("method", ["minent", "mec", "twist"])
def test_the_phases_make_the_gradient_of_the_step(method):
    own = side(method)
    for group in own.optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    phases = step._Phases(own)
    graph = {"retain_graph": True, "allow_unused": True}
    after_feats = torch.autograd.grad(phases.total, phases.own, **graph)
    found = torch.autograd.grad(phases.feats, phases.weights, after_feats)
    if method == "mec":  # the teacher follows in a step
        own.module.update_teacher = lambda progress: None
    own()
    for gradient, parameter in zip(found, phases.weights, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_phases_leave_the_weights_of_their_graph():
    phases = step._Phases(side("corinfomax"))
    before = weights(phases.module)
    for run in phases.runs().values():
        run()
        run()
    assert not moved(phases.module, before)


def test_rows_of_a_step(monkeypatch):
    narrow = {"proj_hidden_dim": 64, "proj_output_dim": 64}  # only for the test to be fast
    monkeypatch.setattr(peers, "PROJECTOR", narrow)
    rows = step.bench_step(tiny("mec"), pairs=2, seconds=1e-3)
    assert [(row["method"], row["side"]) for row in rows] == [
        ("mec", name) for name in ("solo_minent", *PEERS)
    ]
    keys = ["side", "pairs", "ms", "low", "high", "MiB", "ratio", "ratio low", "ratio high"]
    for row in rows:
        assert [*row] == ABOUT + keys
        assert 0 < row["low"] <= row["ms"] <= row["high"]
        assert 0 < row["ratio low"] <= row["ratio"] <= row["ratio high"]
        assert row["MiB"] > 1
        assert (row["device"], row["batch"], row["precision"]) == ("cpu", 16, "32-true")
        if row["side"] == "solo_minent":
            assert row["ratio low"] == row["ratio high"] == 1


@pytest.mark.parametrize("method", sides.METHODS)
def test_phases_contain_all_of_a_step(method):
    rows = step.bench_phases(tiny(method), pairs=1, seconds=1e-3)
    share = {row["phase"]: row["share"] for row in rows}
    assert [*share] == ["step", *step.PHASES, "the rest", step.GOAL, *step.BESIDE]
    assert share["step"] == 1
    assert sum(share[name] for name in (*step.PHASES, "the rest")) == pytest.approx(1)
    assert all(value > 0 for name, value in share.items() if name not in ("teacher", "the rest"))
    for row in rows:
        assert [*row][: len(ABOUT)] == ABOUT and row["method"] == method
        assert row["share low"] == row["share"] == row["share high"]


def test_rows_of_the_loop(capsys):
    rows = loop.bench_loop(tiny("mec"), pairs=2, steps=2)
    assert [row["part"] for row in rows] == ["loader", "bare backbone", "step", "loop"]
    for row in rows:
        assert [*row][: len(ABOUT)] == ABOUT and row["format"] == "image_folder"
        assert 0 < row["low"] <= row["images/s"] <= row["high"]
    assert rows[1]["ratio low"] == rows[1]["ratio high"] == 1
    assert "mec on digits: 1438 images" in capsys.readouterr().out


def test_windows_end_before_the_epoch_does():
    turns = loop._Turns({}, pairs=2, steps=3, settle=1)
    module = torch.nn.Module()
    module.device = torch.device("cpu")
    counted = []
    for _ in range(2):  # epochs of 6 batches: one window each, what is left over does not count
        turns.on_train_epoch_start(None, module)
        for _ in range(6):
            before = len(turns.seconds["loop"])
            try:
                turns.on_train_batch_end(None, module)
            except loop._Enough:
                counted.append("enough")
                break
            counted.append(len(turns.seconds["loop"]) - before)
    assert counted[:6] == [0, 0, 0, 0, 1, 0]
    assert counted[6:] == [0, 0, 0, 0, "enough"]


def test_an_epoch_too_short_for_a_window():
    (config,) = tiny("minent", overrides=["optimizer.batch_size=512"])
    with pytest.raises(UserError, match="epoch is too short to be measured: 2 batches"):
        loop.bench_loop([config], pairs=1, steps=5)


@pytest.mark.parametrize("data", ["image_folder", "device"])
@pytest.mark.parametrize("method", ["minent", "mec"])  # batches of 128 and 512
def test_random_pixels_last_for_two_windows_of_a_gpu(method, data):
    overrides = ["accelerator=cpu", f"data.format={data}"]
    (config,) = step.step_configs([method], overrides)
    loop.check_loop(config, WINDOWS["cuda"])
    batches = len(sides.bench_images(config)) // config.optimizer.batch_size
    assert batches >= 2 * (loop._settle(config) + WINDOWS["cuda"] + 1)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_and_leaves_nothing(signum, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loop._Turns, "_others", lambda *_: os.kill(os.getpid(), signum))
    with pytest.raises(KeyboardInterrupt):
        loop.bench_loop(tiny("minent"), pairs=2, steps=2)
    assert list(tmp_path.iterdir()) == []


def test_cifar_without_its_folder_is_random_pixels():
    (config,) = step.step_configs(["minent"], ["accelerator=cpu", "optimizer.batch_size=4"])
    images = sides.bench_images(config)
    assert images.images.shape[1:] == (32, 32, 3) and not images.classes
    indexes, views, targets = sides.one_batch(config)
    assert [view.shape for view in views] == [(4, 3, 32, 32)] * 2
    assert targets.tolist() == [0, 1, 2, 3] and len(indexes) == 4


def test_a_precision_that_is_not_measured():
    (config,) = tiny("minent", overrides=["precision=16-mixed"])
    with pytest.raises(UserError, match="precision is not measured: 16-mixed"):
        sides.precision_of(config)


def test_a_step_in_bf16():
    own = side("twist", overrides=["precision=bf16-mixed"])
    before = copy.deepcopy(weights(own.module))
    own()
    assert math.isfinite(own.loss) and moved(own.module, before)
    assert all(p.dtype == torch.float32 for p in own.module.parameters())
