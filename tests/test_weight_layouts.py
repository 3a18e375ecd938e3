"""Every known layout loads rightly.

The files are made here with the names that the official code gives its tensors, written out below
from that code (the commits are in `solo_minent.weight_layouts`).
"""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_minent.backbones import build_backbone
from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.weights import load_weights

NARROW = [64, 8, 8, 8]
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BOTH = ("weight", "bias")


def names(**layers):
    """`names(fc=BOTH)`: fc.weight, fc.bias; __ stands for a dot."""
    return [
        f"{layer.replace('__', '.')}.{part}" for layer, parts in layers.items() for part in parts
    ]


def resnet_names(depths, convolutions):
    """torchvision's names of a ResNet without fc, in the order of the network."""
    found = ["conv1.weight", *names(bn1=BN)]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            for n in range(1, convolutions + 1):
                found += [f"{at}.conv{n}.weight", *(f"{at}.bn{n}.{part}" for part in BN)]
            if block == 0 and (stage > 1 or convolutions == 3):
                found += [f"{at}.downsample.0.weight"]
                found += [f"{at}.downsample.1.{part}" for part in BN]
    return found


def vit_names(depth):
    """Names of TWIST's vision transformer, DINO's and timm's."""
    found = ["cls_token", "pos_embed", *names(patch_embed__proj=BOTH)]
    for block in range(depth):
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            found += [f"blocks.{block}.{layer}.{part}" for part in BOTH]
    return [*found, *names(norm=BOTH)]


NETWORKS = {
    "resnet18": (("timm:resnet18", "cifar", {"channels": NARROW}), resnet_names((2, 2, 2, 2), 2)),
    "resnet50": (("timm:resnet50", None, {"channels": NARROW}), resnet_names((3, 4, 6, 3), 3)),
    "vit": (
        (
            "timm:vit_tiny_patch16_224",
            None,
            {"img_size": 32, "embed_dim": 12, "num_heads": 3, "depth": 2},
        ),
        vit_names(2),
    ),
}
MEC_FC = [
    "0.weight",
    *(f"1.{part}" for part in BN),
    "3.weight",
    *(f"4.{part}" for part in BN),
    *(f"6.{part}" for part in BOTH),
    *(f"7.{part}" for part in BN[2:]),
]
MEC_PREDICTOR = ["0.weight", *(f"1.{part}" for part in BN), "3.weight", "3.bias"]
TWIST_HEAD = [
    *(f"projection_head.{n}.{part}" for n, parts in ((0, BOTH), (1, BN)) for part in parts),
    *(f"projection_head.{n}.{part}" for n, parts in ((4, BOTH), (5, BN)) for part in parts),
    *(f"last_linear.{part}" for part in BOTH),
    *(f"norm.{part}" for part in BN[2:]),
]
MINENT_HEAD = [f"{n}.{part}" for n, parts in ((0, BOTH), (1, BN), (3, BOTH)) for part in parts]


@pytest.fixture
def network():
    """`network("resnet18", stem="solo", seed=1)`: a backbone with weights of its own."""

    def make(kind="resnet18", seed=1, **changes):
        (name, stem, kwargs), _ = NETWORKS[kind]
        stem = changes.pop("stem", stem)
        torch.manual_seed(seed)
        backbone = build_backbone(name, stem, **{**kwargs, **changes})
        for value in backbone.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.1)
            else:
                value.fill_(seed)
        return backbone.eval()

    return make


def under(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def noise(prefix, suffixes):
    return {f"{prefix}{suffix}": torch.rand(3) for suffix in suffixes}


def official(kind, backbone):
    """state: under the official names, in their order."""
    own, listed = backbone.state_dict(), NETWORKS[kind][1]
    assert sorted(own) == sorted(listed)
    return {name: own[name].clone() for name in listed}


def mec(student, teacher):
    state = under("encoder.", student) | noise("encoder.fc.", MEC_FC)
    state |= noise("predictor.", MEC_PREDICTOR)
    state |= under("teacher.", teacher) | noise("teacher.fc.", MEC_FC)
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 2.0}]}
    return {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": under("module.", state),
        "optimizer": optimizer,
    }


def twist(student, teacher=None):
    def whole(net):
        return under("backbone.", net) | noise("projection_heads.", TWIST_HEAD)

    contents = {
        "model": whole(student),
        "backbone": student,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 849,
        "args": argparse.Namespace(backbone="resnet50", output_dir=Path("out")),
        "scaler": {"scale": 65536.0},
    }
    if teacher is not None:
        contents |= {"teacher": whole(teacher), "teacher_backbone": teacher}
    return contents


def corinfomax(student):
    projector = [*names(**{"0": BOTH, "2": BOTH}), "4.weight"]
    return {
        "epoch": 1000,
        "model_state_dict": under("backbone.", student) | noise("projector.", projector),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "parameters_dict": {"learning_rate": 0.5},
        "loss": np.float64(-3.2),
    }


def minent(student, heads=2):
    state = under("model.", student)
    if heads == 1:
        return state | noise("head.", MINENT_HEAD) | noise("norm.norm_layer.", BN)
    for head in range(heads):
        state |= noise(f"head_list.{head}.", MINENT_HEAD)
        state |= noise(f"norm_list.{head}.norm_layer.", BN)
    return state


def solo(prefix, student, teacher=None):
    state = under(f"{prefix}.", student) | noise("classifier.", BOTH)
    state |= noise("projector.", ["0.weight", "0.bias"])
    if teacher is not None:
        state |= under(f"momentum_{prefix}.", teacher) | noise("predictor.", ["0.weight"])
    return {
        "epoch": 999,
        "global_step": 1000,
        "pytorch-lightning_version": "1.5.3",
        "callbacks": {},
        "state_dict": state,
        "optimizer_states": [],
    }


def ours(student, teacher):
    contents = solo("encoder", student)
    contents["callbacks"] = {"EpochLog": {"rows": [{"epoch": 0}]}}
    contents["state_dict"] |= under("teacher_backbone.", teacher)
    return contents


def torchvision_file(student):
    """torchvision's own files have no batch counters, and a classifier."""
    plain = {k: v for k, v in student.items() if not k.endswith("num_batches_tracked")}
    return plain | noise("fc.", BOTH)


SOLO2, SOLO6 = "solo-learn 1.0.2 checkpoint", "solo-learn 1.0.6 checkpoint"
# network, its stem, what makes the file of student and teacher, layout, what is ignored
FILES = {
    "mec": (
        "resnet50",
        None,
        mec,
        "MEC checkpoint",
        "encoder.fc (17), predictor (8), teacher (335)",
    ),
    "twist": ("resnet50", None, lambda s, t: twist(s), "TWIST checkpoint", "model (337)"),
    "twist vit": (
        "vit",
        None,
        twist,
        "TWIST checkpoint",
        "model (49), teacher (49), teacher_backbone (30)",
    ),
    "twist backbone only": ("resnet50", None, lambda s, t: s, "state dict", ""),
    "corinfomax": (
        "resnet18",
        "cifar",
        lambda s, t: corinfomax(s),
        "CorInfoMax checkpoint",
        "projector (5)",
    ),
    "corinfomax resnet50": ("resnet50", None, lambda s, t: s, "state dict", ""),
    "minent": (
        "resnet18",
        "small",
        lambda s, t: minent(s),
        "MinEnt checkpoint",
        "head_list (18), norm_list (10)",
    ),
    "minent one head": (
        "resnet18",
        "cifar",
        lambda s, t: minent(s, 1),
        "MinEnt checkpoint",
        "head (9), norm (5)",
    ),
    "solo-learn 1.0.2": (
        "resnet18",
        "solo",
        lambda s, t: solo("encoder", s),
        SOLO2,
        "classifier (2), projector (2)",
    ),
    "solo-learn 1.0.2 byol": (
        "resnet18",
        "solo",
        lambda s, t: solo("encoder", s, t),
        SOLO2,
        "classifier (2), projector (2), momentum_encoder (120), predictor (1)",
    ),
    "solo-learn 1.0.6 byol": (
        "resnet18",
        "solo",
        lambda s, t: solo("backbone", s, t),
        SOLO6,
        "classifier (2), projector (2), momentum_backbone (120), predictor (1)",
    ),
    "ours": (
        "resnet18",
        "cifar",
        ours,
        "solo_minent checkpoint",
        "classifier (2), projector (2), teacher_backbone (120)",
    ),
    "torchvision": (
        "resnet18",
        "imagenet",
        lambda s, t: torchvision_file(s),
        "state dict",
        "fc (2)",
    ),
    "timm": ("vit", None, lambda s, t: s | noise("head.", BOTH), "state dict", "head (2)"),
    "timm training": (
        "resnet18",
        "cifar",
        lambda s, t: {"epoch": 3, "arch": "resnet18", "state_dict": s},
        "state dict",
        "",
    ),
    "compiled in DDP": (
        "resnet18",
        "cifar",
        lambda s, t: {"state_dict": under("module.backbone._orig_mod.", s)},
        "state dict",
        "",
    ),
}
TEACHERS = ("mec", "twist vit", "solo-learn 1.0.2 byol", "solo-learn 1.0.6 byol", "ours")


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


@pytest.mark.parametrize("case", FILES)
def test_every_known_layout_loads_completely(case, network, tmp_path):
    kind, stem, make, layout, ignored = FILES[case]
    change = {"stem": stem} if stem else {}
    student, teacher = network(kind, 1, **change), network(kind, 2, **change)
    contents = make(official(kind, student), official(kind, teacher))
    path, target = saved(tmp_path / "file.pth", contents), network(kind, 3, **change)
    loaded = load_weights(path, target)
    total = len(NETWORKS[kind][1])
    bare = case == "torchvision"
    missing = ", not in the file: num_batches_tracked (20)" if bare else ""
    rest = f", ignored: {ignored}" if ignored else ""
    assert loaded.line == f"loaded {total - 20 * bare}/{total}{missing}{rest}"
    assert (loaded.layout, loaded.sha256) == (layout, sha256(path))
    if bare:  # the counters are as they were
        assert target.bn1.num_batches_tracked == 3
        for net in (target, student):
            for module in net.modules():
                if hasattr(module, "num_batches_tracked"):
                    module.num_batches_tracked.zero_()
    assert_same(target, student)


@pytest.mark.parametrize("case", TEACHERS)
def test_the_teacher_where_it_is_asked_for(case, network, tmp_path):
    kind, stem, make, layout, _ = FILES[case]
    change = {"stem": stem} if stem else {}
    student, teacher = network(kind, 1, **change), network(kind, 2, **change)
    contents = make(official(kind, student), official(kind, teacher))
    path, target = saved(tmp_path / "file.pth", contents), network(kind, 3, **change)
    assert load_weights(path, target, "teacher").layout == layout
    assert_same(target, teacher)


@pytest.mark.parametrize("case", ["corinfomax", "twist", "minent"])
def test_a_teacher_that_is_not_there_is_not_replaced_by_the_student(case, network, tmp_path):
    kind, stem, make, *_ = FILES[case]
    backbone = network(kind, 1, **({"stem": stem} if stem else {}))
    path = saved(tmp_path / "file.pth", make(official(kind, backbone), None))
    refused(path, backbone, f"weights of a teacher are missing: {path}", which="teacher")
    with pytest.raises(UserError, match="which is unknown: both. It is one of student, teacher"):
        load_weights(path, backbone, "both")


@pytest.mark.parametrize(
    ("case", "stem", "message"),
    [
        ("solo-learn 1.0.2", "cifar", f"cifar, {{}} has solo ({SOLO2})"),
        ("solo-learn 1.0.6 byol", "small", f"small, {{}} has solo ({SOLO6})"),
        ("corinfomax", "solo", "solo, {} has cifar (CorInfoMax checkpoint)"),
        ("minent", "solo", "solo, {} has cifar or small (MinEnt checkpoint)"),
    ],
)
def test_a_stem_of_the_same_shape_but_other_padding(case, stem, message, network, tmp_path):
    _, own, make, *_ = FILES[case]
    state = official("resnet18", network(stem=own))
    path, backbone = saved(tmp_path / "file.pth", make(state, state)), network(stem=stem)
    refused(path, backbone, f"stem does not suit the weights: {message.format(path)}")


def test_two_backbones_are_one_only_if_they_are_equal(network, tmp_path):
    one, other = network(seed=1).state_dict(), network(seed=2).state_dict()
    head = noise("projection_heads.", TWIST_HEAD)
    contents = {"model": under("backbone.", one) | head, "backbone": other}
    path, target = saved(tmp_path / "file.pth", contents), network(seed=3)
    refused(path, target, "has two backbones, backbone[all names] and model[backbone.]")
    contents["backbone"] = {key: value.clone() for key, value in one.items()}
    contents["backbone"]["bn1.bias"] += 1e-6
    refused(saved(path, contents), target, "ambiguous")
    contents["backbone"] = {key: value.clone() for key, value in one.items()}
    load_weights(saved(path, contents), target)
    assert torch.equal(target.conv1.weight, one["conv1.weight"])
