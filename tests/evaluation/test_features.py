"""Features: every image, eval mode for the time being, usable afterwards."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from solo_minent import machine
from solo_minent.errors import UserError
from solo_minent.evaluation import features
from solo_minent.evaluation.features import computing, extract_features, resolve_precision


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(23, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(23)), batch_size=5)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def test_every_image_in_order_and_equal_to_a_plain_forward(backbone, loader):
    feats, labels = extract_features(backbone, loader, progress=False)
    assert feats.dtype == torch.float32
    assert labels.tolist() == list(range(23))
    backbone.eval()
    expected = backbone(loader.dataset.tensors[0]).detach()
    torch.testing.assert_close(feats, expected)


def test_modes_and_running_statistics_are_as_before(backbone, loader):
    backbone.train()
    backbone[1].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract_features(backbone, loader, progress=False)
    assert [m.training for m in backbone] == [True, False, True, True, True]
    assert backbone.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_come_back_after_an_error(backbone):
    backbone.train()
    bad = [(torch.rand(2, 5, 8, 8), torch.zeros(2))]
    with pytest.raises(RuntimeError):
        extract_features(backbone, bad, progress=False)
    assert backbone[2].training


def test_a_probe_can_train_on_the_result(backbone, loader):
    feats, labels = extract_features(backbone, loader, progress=False)
    probe = nn.Linear(4, 23)
    nn.functional.cross_entropy(probe(feats), labels).backward()
    assert probe.weight.grad.abs().sum() > 0


def test_convolutional_backbones_get_channels_last(backbone, loader):
    seen = []
    backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    extract_features(backbone, loader, progress=False)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert seen[0].is_inference()


def test_memory_for_all_rows_is_taken_once(backbone, loader, monkeypatch):
    taken = []
    empty = features._empty
    monkeypatch.setattr(features, "_empty", lambda *a: taken.append(a) or empty(*a))
    feats, labels = extract_features(backbone, loader, progress=False)
    assert taken == [(23, 4)] and feats.untyped_storage().nbytes() == 23 * 4 * 4
    assert not feats.is_inference() and not labels.is_inference()
    # Loaders of unknown length or of another order of images give the same.
    shuffled = DataLoader(loader.dataset, batch_size=5, shuffle=True)
    for other in (list(loader), (batch for batch in loader)):
        assert torch.equal(extract_features(backbone, other, progress=False)[0], feats)
    mixed, order = extract_features(backbone, shuffled, progress=False)
    torch.testing.assert_close(mixed[order.argsort()], feats)
    assert len(taken) == 1


def test_features_beyond_the_memory_are_refused_after_the_first_batch(
    backbone, loader, monkeypatch
):
    monkeypatch.setattr(features, "available_memory", lambda: 23 * 4 * 4 - 1)
    message = "features do not fit into memory: 23 images x 4 numbers need 0.0 GiB"
    with pytest.raises(UserError, match=message):
        extract_features(backbone, loader, progress=False)
    monkeypatch.setattr(features, "available_memory", lambda: 23 * 4 * 4)
    extract_features(backbone, loader, progress=False)


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMIT", limit)
    free = machine.available_memory()
    assert free > 0
    limit.write_text("max\n")
    assert machine.available_memory() > free / 2
    limit.write_text("1000\n")
    assert machine.available_memory() < 0


@pytest.mark.parametrize(("name", "tf32"), [("32", False), ("tf32", True), (None, None)])
def test_tf32_is_off_on_or_as_it_was(name, tf32):
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    with computing(name, "cpu"):
        inside = [switch.allow_tf32 for switch in switches]
    assert inside == (before if tf32 is None else [tf32] * 2)
    assert [switch.allow_tf32 for switch in switches] == before


def test_names_of_precisions(monkeypatch):
    assert resolve_precision("32-true", "cpu") == resolve_precision("tf32", "cpu") == "32"
    assert (resolve_precision("tf32", "cuda"), resolve_precision("auto", "cpu")) == ("tf32", "32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto", "cuda") == "bf16-mixed"


def test_bf16_is_close_and_float32(backbone, loader):
    exact, _ = extract_features(backbone, loader, precision="auto", progress=False)
    rough, _ = extract_features(backbone, loader, precision="bf16-mixed", progress=False)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.02, rtol=0.05)


def test_progress_bar_is_labelled(backbone, loader, capsys, monkeypatch):
    extract_features(backbone, loader)
    assert capsys.readouterr().err == "", "a log file wants no bar"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract_features(backbone, loader)
    assert "features" in capsys.readouterr().err
    extract_features(backbone, loader, progress=False)
    assert capsys.readouterr().err == ""


def test_bad_input(backbone, loader):
    with pytest.raises(UserError, match="unknown precision: 8"):
        extract_features(backbone, loader, precision="8", progress=False)
    with pytest.raises(UserError, match="loader is empty"):
        extract_features(backbone, [], progress=False)
    with pytest.raises(UserError, match=r"pooled features \(B, D\): \(5, 4, 6, 6\)"):
        extract_features(backbone[:2], loader, progress=False)
