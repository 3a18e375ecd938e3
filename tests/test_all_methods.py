"""Every registered method through the same table: fit, validate, save, resume, load, evaluate."""

import importlib
import json

import pandas as pd
import pytest
import torch

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.config import load_run
from solo_minent.evaluation.knn import knn_eval
from solo_minent.evaluation.linear import linear_eval
from solo_minent.evaluation.targets import features_of, load_target
from solo_minent.methods import available
from solo_minent.pretrain import pretrain
from solo_minent.weights import load_weights

METHODS = sorted(available())


def test_every_method_is_a_solo_learn_method():
    plugin = importlib.import_module("solo_minent.plugin")  # before solo, whatever sorts imports
    import solo.methods

    assert set(METHODS) <= set(solo.methods.METHODS)
    for name in METHODS:
        assert issubclass(solo.methods.METHODS[name], solo.methods.BaseMethod)
    plugin.register()  # a second time changes nothing
    assert set(METHODS) <= set(solo.methods.METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_run_from_pretraining_to_evaluation(tiny_run, name):
    config = tiny_run(name)
    run_dir = pretrain(config)

    log = pd.read_csv(run_dir / "log.csv")
    assert log["epoch"].tolist() == [0, 1, 2]
    terms = {f"train_{name}_loss"} | {f"train_{name}_{t}" for t in available()[name].monitors}
    assert terms | {"val_acc1", "train_class_loss", "knn_acc1", "lr"} <= set(log.columns)
    assert log[sorted(terms)].iloc[1:].notna().all().all()
    assert load_run(run_dir).method_kwargs == config.method_kwargs

    checkpoint = torch.load(run_dir / CHECKPOINT_FILE, weights_only=True)
    state = host.backbone_state(checkpoint["state_dict"])
    backbone = build_backbone("timm:resnet10t", "small", **config.backbone.kwargs)
    loaded = load_weights(run_dir / "backbone.safetensors", backbone)
    assert (loaded.layout, loaded.ignored) == ("solo_minent backbone", {})
    assert state.keys() == backbone.state_dict().keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key

    trained, untrained = load_target(config), load_target(config, "random")
    features = features_of(trained, config, progress=False)
    assert features.train.shape == (160, 16) and features.test.shape == (80, 16)
    assert not torch.equal(features.test, features_of(untrained, config, progress=False).test)
    linear = linear_eval(config, trained, progress=False)
    (nearest,) = knn_eval(config, trained, [5], features=features)
    for result in (linear, nearest):
        hits = result["top1"] * 80 / 100
        assert hits == pytest.approx(round(hits)) and 0 < hits <= 80
    stored = json.loads((run_dir / "results.json").read_text())
    assert [r["protocol"] for r in stored] == [linear["protocol"], nearest["protocol"]]
    assert {r["checkpoint_sha256"] for r in stored} == {trained.checkpoint_sha256}


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tiny_run, name, tmp_path):
    whole = pretrain(tiny_run(name, "max_epochs=3", "name=whole"))

    class Killed(Exception):
        pass

    config = tiny_run(name, "max_epochs=3", "name=killed")
    with pytest.MonkeyPatch.context() as patch:
        from solo_minent.training.saving import Saving

        original = Saving.on_train_epoch_end

        def save_then_die(self, trainer, module):
            original(self, trainer, module)
            if trainer.current_epoch == 1:
                raise Killed

        patch.setattr(Saving, "on_train_epoch_end", save_then_die)
        with pytest.raises(Killed):
            pretrain(config)
    killed = pretrain(config)

    a, b = (torch.load(run / CHECKPOINT_FILE, weights_only=True) for run in (whole, killed))
    assert a["global_step"] == b["global_step"] == 15
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    logs = [pd.read_csv(run / "log.csv") for run in (whole, killed)]
    pd.testing.assert_frame_equal(*logs)
