"""Models of the zoo: loaded whole, ready to be evaluated, wherever a backbone is named."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file

import solo_minent.zoo
from solo_minent.errors import UserError
from solo_minent.evaluation.targets import load_target
from solo_minent.files import sha256
from solo_minent.zoo import create_model, list_models, load_backbone


def again(values, folder):
    """The entry, with size and sha256 of its file as it is now."""
    path = folder / "checkpoints" / "tiny.safetensors"
    values["files"][0] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return values


def test_a_model_is_ready_to_be_evaluated(values, write_zoo):
    folder = write_zoo(values)
    model = load_backbone("tiny")
    assert (model.feature_dim, model.loaded.line) == (8, "loaded 78/78")
    assert not any(module.training for module in model.backbone.modules())
    tensors = read_tensors(folder / "checkpoints" / "tiny.safetensors")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, tensors[key]), key
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = model.transform(Image.fromarray(pixels))
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32
    assert image.min() >= -0.3 / 0.4 - 1e-6 and image.max() <= 0.7 / 0.4 + 1e-6
    assert model.backbone(image[None]).shape == (1, 8)
    assert model.entry.licence == "MIT" and model.path.name == "tiny.safetensors"


def test_a_model_is_downloaded_when_it_is_asked_for(values, write_zoo, hub, tmp_path):
    path = tmp_path / "zoo" / "checkpoints" / "tiny.safetensors"
    hub.content = path.read_bytes()
    path.unlink()
    values["files"][0]["urls"] += [hub.url("ok")]
    write_zoo(values)
    with pytest.raises(UserError, match="cannot be had: tiny.safetensors .*offline"):
        load_backbone("tiny", offline=True)
    assert load_backbone("tiny").loaded.sha256 == values["files"][0]["sha256"]
    assert load_backbone("tiny", offline=True).feature_dim == 8 and len(hub.seen) == 1


def test_float16_weights_load_into_float32(values, write_zoo, tmp_path):
    folder = write_zoo(values)
    path = folder / "checkpoints" / "tiny.safetensors"
    before = load_backbone("tiny").backbone.state_dict()
    tensors = read_tensors(path)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, path)
    write_zoo(again(values, folder))
    for key, value in load_backbone("tiny").backbone.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key].half().to(value.dtype)), key


@pytest.mark.parametrize("change", ["less", "more", "shape", "nan"])
def test_a_file_that_does_not_load_whole_is_refused(change, values, write_zoo):
    folder = write_zoo(values)
    path = folder / "checkpoints" / "tiny.safetensors"
    tensors = read_tensors(path)
    if change == "less":
        del tensors["layer4.0.conv1.weight"]
    elif change == "more":
        tensors["layer5.weight"] = torch.zeros(2)
    elif change == "shape":
        tensors["layer4.0.conv1.weight"] = torch.zeros(8, 8, 1, 1)
    else:
        tensors["bn1.bias"] = torch.full((64,), torch.nan)
    save_file(tensors, path)
    write_zoo(again(values, folder))
    with pytest.raises(UserError, match="weights (do not fit|are not finite)"):
        load_backbone("tiny")


def test_a_wrong_feature_dim_is_refused(values, write_zoo):
    write_zoo(values | {"feature_dim": 16})
    with pytest.raises(UserError, match="feature_dim of tiny is wrong: 16, its backbone has 8"):
        load_backbone("tiny")


def test_an_index_cannot_have_weights_fetched_elsewhere(values, write_zoo):
    for kwargs in ({"pretrained": True}, {"checkpoint_path": "/etc/passwd"}):
        values["backbone"]["kwargs"] = kwargs
        write_zoo(values)
        with pytest.raises(UserError, match="a backbone is built untrained"):
            load_backbone("tiny")
    values["backbone"] = {"name": "timm:hf-hub:owner/model"}
    write_zoo(values)
    with pytest.raises(UserError, match="unknown timm model"):
        load_backbone("tiny")


# In the words of timm and torch.hub.


def test_models_in_timms_words(values, write_zoo):
    write_zoo(
        values, values | {"id": "tiny-2", "files": [dict(values["files"][0], name="b.safetensors")]}
    )
    assert list_models() == ["tiny", "tiny-2"] and list_models("*-2") == ["tiny-2"]
    trained, other = create_model("tiny"), create_model("tiny_2", pretrained=False)
    assert torch.equal(trained.conv1.weight, load_backbone("tiny").backbone.conv1.weight)
    assert not torch.equal(trained.conv1.weight, other.conv1.weight)
    images = torch.zeros(2, 3, 16, 16)
    assert create_model("tiny", num_classes=5)(images).shape == (2, 5)
    with pytest.raises(UserError, match="model is unknown: tiny3"):
        create_model("tiny3")
    with pytest.raises(AttributeError):
        solo_minent.zoo.nothing  # noqa: B018


def test_models_in_the_words_of_torch_hub(values, write_zoo, tmp_path, monkeypatch):
    write_zoo(values | {"id": "tiny-cifar.v1"})
    model = torch.hub.load(solo_minent.zoo.__path__[0], "tiny_cifar_v1", source="local")
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 8)
    # A repository of the user's own.
    monkeypatch.delitem(sys.modules, "solo_minent.zoo.hubconf", raising=False)
    (tmp_path / "hubconf.py").write_text("from solo_minent.zoo.hubconf import *\n")
    model = torch.hub.load(str(tmp_path), "tiny_cifar_v1", source="local", num_classes=3)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    hubconf = sys.modules.pop("solo_minent.zoo.hubconf")
    public = [name for name in dir(hubconf) if name[0] != "_" and callable(getattr(hubconf, name))]
    assert hubconf.__all__ == public == ["tiny_cifar_v1"]
    assert "minent" in hubconf.tiny_cifar_v1.__doc__


# Where a backbone is named.


def test_a_model_is_an_evaluation_target(values, write_zoo, tiny_run):
    write_zoo(values)
    target = load_target(tiny_run("mec"), "tiny")
    assert (target.kind, target.mean, target.std) == ("tiny", [0.3] * 3, [0.4] * 3)
    assert target.origin == "zoo tiny (tiny.safetensors): loaded 78/78"
    assert target.checkpoint_sha256 == values["files"][0]["sha256"] and target.digest
    with pytest.raises(
        UserError, match="target is unknown: tinny.* a model of the zoo, .*has tiny"
    ):
        load_target(tiny_run("mec"), "tinny")


@pytest.mark.parametrize("what", ["knn", "cluster"])
def test_a_command_takes_a_model(what, values, write_zoo, command, tmp_path):
    write_zoo(values)
    words = ["--recipe", "digits/minent", f"output_dir={tmp_path / 'runs'}", "accelerator=cpu"]
    words += ["data.train_images=100", "data.val_images=50", "data.num_workers=0"]
    status, out, _ = command(what, *words, "--target", "tiny")
    assert status == 0 and ("top1" in out or "nmi" in out.lower()), out
    status, _, error = command(what, *words, "--target", "tinny")
    assert status == 2 and "The zoo has tiny." in error
