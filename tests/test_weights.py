"""Weights fit completely or are refused in one line that names the first difference."""

import pytest
import torch

from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import CHECKPOINT_FILE, save_backbone
from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain
from solo_minent.weights import load_weights

NETWORKS = {
    "resnet18": ("timm:resnet18", "cifar", {"channels": [64, 8, 8, 8]}),
    "vit": (
        "timm:vit_tiny_patch16_224",
        None,
        {"img_size": 32, "embed_dim": 12, "num_heads": 3, "depth": 2},
    ),
}


@pytest.fixture
def network():
    """`network("resnet18", stem="solo", seed=1)`: a backbone with weights of its own."""

    def make(kind="resnet18", seed=1, **changes):
        name, stem, kwargs = NETWORKS[kind]
        stem = changes.pop("stem", stem)
        torch.manual_seed(seed)
        return build_backbone(name, stem, **{**kwargs, **changes}).eval()

    return make


def assert_same(one, other):
    """The same weights, and the same function of images."""
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one.eval()(images), other.eval()(images))


def saved(path, contents):
    torch.save(contents, path)
    return path


def refused(path, backbone, message, **kwargs):
    """One line, and a backbone that is as before."""
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(path, backbone, **kwargs)
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text) < 700, text
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".tar", ".pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_ending_and_the_older_format_of_pytorch(suffix, zipped, network, tmp_path):
    student, path, target = network(), tmp_path / f"file{suffix}", network(seed=2)
    torch.save(student.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert load_weights(path, target).line == "loaded 120/120"
    assert_same(target, student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_formats_are_converted(dtype, network, tmp_path):
    student, target = network(), network(seed=2)
    state = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in student.state_dict().items()
    }
    load_weights(saved(tmp_path / "file.pt", state), target)
    for key, value in target.state_dict().items():
        assert value.dtype == student.state_dict()[key].dtype
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("saved_as", "built_as", "message"),
    [
        (
            {"stem": None},
            {"stem": "cifar"},
            "1 of 120 tensors differ, first conv1.weight is 64x3x7x7 in the file, 64x3x3x3 in the "
            "backbone (state dict). The architecture must be the one that was trained. "
            "Set backbone.stem=imagenet.",
        ),
        ({}, {"stem": "imagenet"}, "Set backbone.stem=cifar or small or solo."),
        ({"channels": [64, 8, 8, 16]}, {}, "differ, first layer4.0.conv1.weight is 16x8x3x3 in"),
    ],
)
def test_another_stem_or_width_is_refused(saved_as, built_as, message, network, tmp_path):
    path = saved(tmp_path / "file.pth", network(**saved_as).state_dict())
    refused(path, network(**built_as), message)


def test_our_export_says_which_stem_it_has(network, tmp_path):
    path, student = tmp_path / "b.safetensors", network(stem="small")
    config = load_recipe("digits/mec", ["backbone.name=timm:resnet18", "backbone.stem=small"])
    save_backbone(path, student.state_dict(), config)
    refused(path, network(stem="cifar"), f"cifar, {path} has small")
    words = "The file was trained with backbone.name=timm:resnet18 backbone.stem=small"
    refused(path, network(stem="imagenet"), words)
    target = network(stem="small", seed=2)
    loaded = load_weights(path, target)
    assert (loaded.layout, loaded.line) == ("solo_minent backbone", "loaded 120/120")
    assert_same(target, student)


def test_vision_transformers_of_other_patches_or_images(network, tmp_path):
    path = saved(tmp_path / "file.pth", network("vit").state_dict())
    refused(path, network("vit", img_size=48), "backbone.kwargs.img_size=32 data.image_size=32")
    patches = "30 tensors differ, first pos_embed is 1x5x12 in the file, 1x17x12"
    refused(path, network("vit", patch_size=8), patches)
    refused(path, network("vit", depth=3), "12 of 42 tensors differ, first blocks.2.norm1.weight")
    refused(path, network("vit", depth=1), "first blocks.1.norm1.weight is not in the backbone")


def drop(key):
    return lambda state: state.pop(key)


def rename(old, new):
    def spoil(state):
        for key in [key for key in state if key.startswith(old)]:
            state[new + key.removeprefix(old)] = state.pop(key)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("layer2.0.conv1.weight"), "1 of 120 tensors differ, first layer2.0.conv1.weight"),
        (drop("bn1.num_batches_tracked"), "first bn1.num_batches_tracked is not in the file"),
        (drop("bn1.running_mean"), "first bn1.running_mean is not in the file"),
        (rename("layer3.", "layer5."), "first layer3.0.conv1.weight is not in the file"),
        (rename("layer4.1.", "layer4.2."), "first layer4.1.conv1.weight is not in the file"),
        (rename("", "net."), "has net (120). Names such as conv1.weight or backbone.conv1.weight"),
        (rename("", "net.body."), "Save those behind net.body. alone"),
        (rename("", "encoder."), "of no known layout"),
        (lambda s: s.update(extra=torch.ones(2)), "first extra is not in the backbone"),
        (lambda s: s.update({"bn1.bias": torch.ones(64).int()}), "first bn1.bias is torch.int32"),
        (
            lambda s: s.update({"bn1.bias": torch.ones(64) * 1j}),
            "first bn1.bias is torch.complex64",
        ),
        (lambda s: s.update({"bn1.bias": torch.ones(64).to_sparse()}), "torch.sparse_coo"),
        (lambda s: s.update({"bn1.bias": torch.ones(64, device="meta")}), "on meta"),
        (lambda s: s.update({"bn1.bias": 3.0}), "first bn1.bias is not in the file"),
        (lambda s: s.update({"bn1.bias": torch.full((64,), torch.nan)}), "1 of 120 tensors hold"),
        (lambda s: s["conv1.weight"].fill_(torch.inf), "infinity, first conv1.weight"),
        (lambda s: s.clear(), "has no tensors by name"),
    ],
)
def test_a_partial_or_strange_state_dict_is_refused(spoil, message, network, tmp_path):
    state = dict(network().state_dict())
    spoil(state)
    refused(saved(tmp_path / "file.pth", state), network(seed=2), message)


def test_a_deeper_network_is_not_cut_to_fit(network, tmp_path):
    torch.manual_seed(0)
    deeper = build_backbone("timm:resnet34", "cifar", channels=[64, 8, 8, 8])
    path = saved(tmp_path / "file.pth", deeper.state_dict())
    refused(path, network(), "first layer1.2.conv1.weight is not in the backbone")


def test_float16_cannot_hold_what_overflows(network, tmp_path):
    state = network().state_dict()
    state["bn1.bias"] = torch.full((64,), 1e300, dtype=torch.float64)
    refused(saved(tmp_path / "file.pth", state), network(seed=2), "first bn1.bias. A run that")


def test_names_that_fall_together_without_their_wrapper(network, tmp_path):
    one, other = network(seed=1).state_dict(), network(seed=2).state_dict()
    path = saved(tmp_path / "file.pth", one | {f"module.{k}": v for k, v in other.items()})
    refused(path, network(seed=3), "first module.conv1.weight is not in the backbone")


def test_checkpoints_of_real_training(tiny_run, tmp_path):
    config = tiny_run("mec", "max_epochs=1")
    folder = pretrain(config)
    path = folder / CHECKPOINT_FILE
    settings = config.backbone

    def backbone():
        return build_backbone(settings.name, settings.stem, **settings.kwargs)

    exported, resumed, teacher = backbone(), backbone(), backbone()
    load_weights(folder / "backbone.safetensors", exported)
    loaded = load_weights(path, resumed)
    assert loaded.layout == "solo_minent checkpoint"
    assert {"classifier", "projector", "teacher_backbone"} <= loaded.ignored.keys()
    assert_same(exported, resumed)
    load_weights(path, teacher, "teacher")
    contents = torch.load(path, weights_only=True)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, contents["state_dict"][f"teacher_backbone.{key}"])
    # The same run on the other version of solo-learn.
    names = {"encoder.": "backbone.", "backbone.": "encoder."}
    first = next(old for old in names if any(k.startswith(old) for k in contents["state_dict"]))
    state = contents["state_dict"]
    for key in [key for key in state if key.startswith(first)]:
        state[names[first] + key.removeprefix(first)] = state.pop(key)
    other = backbone()
    load_weights(saved(tmp_path / "other.ckpt", contents), other)
    assert_same(other, exported)
