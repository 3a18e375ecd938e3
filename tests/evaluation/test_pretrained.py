"""Published weights: the libraries' own files, checked, or one line that says what is missing."""

from functools import partial

import pytest
import timm
import torch
import torchvision.models
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from solo_minent.backbones import build_backbone
from solo_minent.errors import UserError
from solo_minent.evaluation.pretrained import from_timm, from_torchvision
from solo_minent.evaluation.targets import load_target
from solo_minent.files import sha256


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torchvision's resnet18 has one set of weights, behind a file:// address of its usual form."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    plain = tmp_path / "plain.pth"
    torch.save(state, plain)
    source = plain.rename(tmp_path / f"resnet18-{sha256(plain)[:8]}.pth")
    preset = partial(ImageClassification, crop_size=224, mean=(0.5, 0.4, 0.3))
    choices = WeightsEnum("Choices", {"V1": Weights(source.as_uri(), preset, {})})
    choices.DEFAULT = choices.V1
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: choices)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    model.fc = torch.nn.Identity()
    return source, model.eval()


def test_torchvision_weights_are_fetched_checked_and_kept(published, tmp_path, tiny_run):
    source, model = published
    found = from_torchvision("resnet18", "V1")
    kept = tmp_path / "hub" / "checkpoints" / source.name
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.backbone.eval()(images), model(images))
    assert found.sha256 == sha256(source) == sha256(kept)
    assert (found.mean, found.std) == ([0.5, 0.4, 0.3], [0.229, 0.224, 0.225])
    assert (
        "loaded 100/120, not in the file: num_batches_tracked (20), ignored: fc (2)" in found.origin
    )
    source.unlink()  # no connection is needed any more
    target = load_target(tiny_run("mec"), "torchvision:resnet18")
    assert target.kind == "torchvision:resnet18" and target.mean == found.mean
    assert "torchvision resnet18 V1" in target.origin and "[0.5, 0.4, 0.3]" in target.origin
    assert target.digest is not None and target.checkpoint_sha256 == found.sha256


def test_torchvision_weights_that_are_others_or_out_of_reach(published, tmp_path):
    source, _ = published
    good = source.read_bytes()
    source.write_bytes(good[:-1] + b"x")
    kept = tmp_path / "hub" / "checkpoints" / source.name
    for reason in ("invalid hash value", "No such file"):
        with pytest.raises(UserError, match=f"cannot be had: torchvision:resnet18.*{reason}") as e:
            from_torchvision("resnet18")
        assert "\n" not in str(e.value) and str(kept) in str(e.value) and not kept.exists()
        source.unlink(missing_ok=True)
    kept.write_bytes(good[:-1] + b"x")
    with pytest.raises(UserError, match=f"downloaded weights are damaged: {kept}.*rm {kept}"):
        from_torchvision("resnet18")


def test_timm_weights(tmp_path, monkeypatch, tiny_run):
    torch.manual_seed(2)
    whole, make = timm.create_model("resnet10t"), timm.create_model
    torch.save(whole.state_dict(), tmp_path / "a.pth")

    def local(name, pretrained=False, **kwargs):
        if pretrained:
            kwargs["pretrained_cfg_overlay"] = {"file": str(tmp_path / "a.pth"), "hf_hub_id": None}
        return make(name, pretrained=pretrained, **kwargs)

    monkeypatch.setattr(timm, "create_model", local)
    found = from_timm("resnet10t")
    assert found.backbone.num_features == 512 and "timm resnet10t" in found.origin
    assert found.origin.endswith("loaded 84/84") and found.sha256 is None
    assert found.mean == list(whole.pretrained_cfg["mean"])
    own = whole.state_dict()
    for key, value in found.backbone.state_dict().items():
        assert torch.equal(value, own[key]), key
    before = torch.get_rng_state()
    target = load_target(tiny_run("mec"), "timm:resnet10t")
    assert target.std == found.std and target.digest is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert build_backbone("timm:resnet10t").num_features == 512

    partial_file = {k: v for k, v in own.items() if not k.startswith("layer4")}
    torch.save(partial_file, tmp_path / "a.pth")
    with pytest.raises(UserError, match="cannot be had: timm:resnet10t .*Missing key"):
        from_timm("resnet10t")

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no connection\nto the hub")
        return make(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="cannot be had: timm:resnet10t .no connection to the hub"):
        from_timm("resnet10t")
