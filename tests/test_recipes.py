"""Every recipe composes, and carries what its authors publish: one table a method."""

import ast
import re
from functools import cache
from itertools import chain, takewhile
from pathlib import Path

import pytest
import torch
import yaml

from solo_minent.backbones import build_backbone
from solo_minent.config import RECIPES, recipes, scaled_lrs
from solo_minent.config import load_recipe as load
from solo_minent.data.augmentations import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarization,
    View,
    parse_views,
)
from solo_minent.methods import available
from solo_minent.pretrain import _steps_per_epoch
from solo_minent.schedules import lr_factor

load_recipe = cache(load)
DATASETS = ("cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet100", "imagenet")
TRAIN_IMAGES = {"cifar10": 50000, "imagenet": 1281167}
HEAD = {"hidden_dim": 1024, "num_layers": 3, "norm": "bn"}
WIDE = HEAD | {"heads": [2048, 1024, 512, 256, 128, 64, 32, 16]}
TALL = HEAD | {"heads": [8192, 4096, 2048, 1024, 512, 256, 128, 64]}

# (nodes, GPUs, images a GPU), absolute lr, epochs, backbone and stem, and keys of the recipe.
MINENT = {
    "cifar10/minent": ((1, 1, 128), 1e-3, 1000, "resnet18 cifar", WIDE),
    "cifar100/minent": ((1, 1, 128), 1e-3, 1000, "resnet18 cifar", WIDE),
    "stl10/minent": ((1, 1, 128), 1e-3, 2000, "resnet18 small", TALL),
    "tiny_imagenet/minent": ((1, 1, 128), 1e-3, 1000, "resnet18 small", TALL),
    "imagenet100/minent": ((1, 1, 128), 1e-3, 500, "resnet18 imagenet", WIDE),
}
CODING = {"output_dim": 2048, "pred_hidden_dim": 512, "eps": 64, "order": 4, "lamda_warmup": 8}
CODING |= {"hidden_dim": 2048, "lamda_warmup_epochs": 10}
CODING |= {"base_momentum": 0.996, "final_momentum": 1}
MEC = {"imagenet/mec": ((1, 8, 128), 2.0, 100, "resnet50 imagenet", CODING)}

CLASSES = {"hidden_dim": 4096, "lam2": 1, "tau": 1, "eps": 1e-5}
TWO_VIEWS = CLASSES | {"output_dim": 32768, "lam1": 0, "bunch_size": 256, "self_label_epoch": None}
STAGES = CLASSES | {"output_dim": 4096, "activation": "relu", "lam1": 0, "momentum_teacher": False}
STAGES |= {"quantile_start": 0.5, "quantile_end": 0.6}
R50 = STAGES | {"bunch_size": 256, "self_label_epoch": 800}
R50W2 = STAGES | {"bunch_size": 240, "self_label_epoch": 200}
VIT = CLASSES | {"output_dim": 4096, "activation": "gelu", "lam1": -0.6, "momentum_teacher": True}
VIT |= {"base_momentum": 0.996, "final_momentum": 1, "self_label_epoch": None, "bunch_size": 256}
TWIST = {
    "imagenet/twist": ((1, 8, 256), 4.0, 800, "resnet50 imagenet", TWO_VIEWS),
    "imagenet/twist_multicrop": ((2, 8, 128), 4.0, 850, "resnet50 imagenet", R50),
    "imagenet/twist_r50w2": ((4, 8, 60), 3.75, 250, "timm:resnetv2_50 None", R50W2),
    "imagenet/twist_deit_s": ((2, 8, 64), 1.2e-3, 300, "timm:vit_small_patch16_224 None", VIT),
    "imagenet/twist_vit_b": ((4, 8, 32), 3e-3, 300, "timm:vit_base_patch16_224 None", VIT),
}


def criterion(width, dim, alpha, la=0.01, batch_norm=False):
    kwargs = {"hidden_dim": width, "output_dim": dim, "alpha": alpha, "batch_norm": batch_norm}
    return {**kwargs, "la_R": la, "la_mu": la, "eps": 1e-8, "R_ini": 1.0}


C10, C100, IN100 = (criterion(*v) for v in ((2048, 64, 250), (4096, 128, 1000), (4096, 128, 500)))
TINY, IN1K = criterion(4096, 128, 500, 0.1), criterion(8192, 512, 2000, 0.1, batch_norm=True)
CORINFOMAX = {
    "cifar10/corinfomax": ((1, 1, 512), 0.5, 1000, "resnet18 cifar", C10),
    "cifar100/corinfomax": ((1, 1, 512), 0.5, 1000, "resnet18 cifar", C100),
    "tiny_imagenet/corinfomax": ((1, 1, 1024), 0.5, 800, "resnet50 imagenet", TINY),
    "imagenet100/corinfomax": ((1, 8, 128), 1.0, 400, "resnet18 imagenet", IN100),
    "imagenet100/corinfomax_r50": ((1, 8, 128), 1.0, 200, "resnet50 imagenet", IN100),
    "imagenet/corinfomax": ((1, 8, 192), 0.2, 100, "resnet50 imagenet", IN1K),
}
PUBLISHED = MINENT | MEC | TWIST | CORINFOMAX

# name, weight decay, excluded from it: biases and norms; further keywords.
OPTIMIZERS = {
    "minent": ("adam", 1e-6, False, {}),
    "mec": ("sgd", 1e-5, False, {"momentum": 0.9}),
    "twist": ("lars", 1.5e-6, True, {"momentum": 0.9, "eta": 0.001}),
    "twist_deit_s": ("adamw", 0.06, True, {}),
    "twist_vit_b": ("adamw", 0.06, True, {}),
    "corinfomax": ("sgd", 1e-4, False, {"momentum": 0.9}),
}

FLIP = HorizontalFlip(0.5)
JITTER, GRAY = ColorJitter(0.8, 0.4, 0.4, 0.2, 0.1), Grayscale(0.2)
SOLARIZE = Solarization(0.2)


def blur(prob):
    return GaussianBlur(prob, (0.1, 2.0))


def minent_views(size):
    if size == 224:
        crop = RandomResizedCrop(224, (0.08, 1), "bicubic")
        jitter = ColorJitter(0.8, 0.8, 0.8, 0.8, 0.2)
        return [View(224, 2, (jitter, Grayscale(0.2), crop, FLIP, blur(0.5)))]
    crop = RandomResizedCrop(size, (0.2, 1), "bicubic")
    return [View(size, 2, (ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1), Grayscale(0.1), crop, FLIP))]


def mec_views(size):
    crop = RandomResizedCrop(size, (0.2, 1), "bilinear")
    return [
        View(size, 1, (crop, JITTER, GRAY, blur(1.0), FLIP)),
        View(size, 1, (crop, JITTER, GRAY, blur(0.1), SOLARIZE, FLIP)),
    ]


def barlow_views(size, scale=(0.08, 1)):
    first = (RandomResizedCrop(size, scale, "bicubic"), FLIP, JITTER, GRAY)
    return [View(size, 1, (*first, blur(1.0))), View(size, 1, (*first, blur(0.1), SOLARIZE))]


def multicrop_views(count, large=(0.4, 1), small=(0.05, 0.4)):
    crop = RandomResizedCrop(96, small, "bicubic")
    local = View(96, count, (crop, FLIP, JITTER, GRAY, blur(0.5)))
    return [*barlow_views(224, large), local]


def published_views(name, size):
    method = name.partition("/")[2]
    local = {"multicrop": 12, "r50w2": 12, "deit_s": 6, "vit_b": 10}
    if views := {"minent": minent_views, "mec": mec_views}.get(method):
        return views(size)
    count = local.get(method.removeprefix("twist_"))
    return multicrop_views(count) if count else barlow_views(size)


IMAGENET_NORM = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALIZATION = {
    "cifar10/minent": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100/minent": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2762]),
    "stl10/minent": ([0.43, 0.42, 0.39], [0.27, 0.26, 0.27]),
    "tiny_imagenet/minent": ([0.480, 0.448, 0.398], [0.277, 0.269, 0.282]),
    "cifar10/corinfomax": ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
    "cifar100/corinfomax": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}


def method_of(name):
    return name.partition("/")[2].partition("_")[0]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_composes_and_its_run_has_a_folder_of_its_own(name):
    config = load_recipe(name)
    dataset, variant = name.split("/")
    assert (config.data.dataset, config.method) == (dataset, method_of(name))
    assert config.name == (variant.partition("_")[2] or "default")


def test_every_method_has_a_recipe_on_every_data_set():
    wanted = {f"{dataset}/{method}" for dataset in DATASETS for method in available()}
    assert wanted <= set(recipes())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    (nodes, gpus, batch), lr, epochs, backbone, kwargs = PUBLISHED[name]
    config = load_recipe(name)
    assert (config.num_nodes, config.devices, config.optimizer.batch_size) == (nodes, gpus, batch)
    assert config.global_batch_size == nodes * gpus * batch
    assert config.accumulate_grad_batches == 1
    assert scaled_lrs(config).optimizer.lr == pytest.approx(lr, rel=1e-12)
    assert config.max_epochs == epochs
    assert f"{config.backbone.name} {config.backbone.stem}" == backbone
    assert {key: config.method_kwargs[key] for key in kwargs} == kwargs
    assert bool(config.backbone.kwargs.get("zero_init_residual")) == (
        config.method in ("mec", "corinfomax")
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optimizers(name):
    optimizer = load_recipe(name).optimizer
    variant = name.partition("/")[2]
    expected = OPTIMIZERS.get(variant) or OPTIMIZERS[method_of(name)]
    found = (optimizer.name, optimizer.weight_decay, optimizer.exclude_bias_n_norm)
    assert (*found, optimizer.kwargs) == expected
    assert optimizer.weight_decay_end == (0.12 if variant == "twist_deit_s" else None)
    assert load_recipe(name).gradient_clip_val == (
        3.0 if variant in ("twist_deit_s", "twist_vit_b") else None
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_views(name):
    config = load_recipe(name)
    size = {"cifar10": 32, "cifar100": 32, "stl10": 64, "tiny_imagenet": 64}
    assert config.data.image_size == size.get(config.data.dataset, 224)
    views = parse_views(config.augmentations, config.data.image_size)
    assert views == published_views(name, config.data.image_size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_normalization(name):
    from solo_minent.data.transforms import normalization

    mean, std = normalization(load_recipe(name).data)
    assert (list(mean), list(std)) == NORMALIZATION.get(name, IMAGENET_NORM)


def test_stage_two_of_twist_crops_harder():
    for name, epoch in (("twist_multicrop", 800), ("twist_r50w2", 200)):
        config = load_recipe(f"imagenet/{name}")
        assert (config.late_epoch, config.scheduler.restart_epoch) == (epoch, epoch)
        late = parse_views(config.late_augmentations, config.data.image_size)
        assert late == multicrop_views(12, large=(0.14, 1), small=(0.05, 0.14))


# Learning rates.


def rates(name, overrides=()):
    """(config with absolute rates, function of the step to the rate, steps of an epoch)."""
    config = load(name, list(overrides))
    steps = _steps_per_epoch(config, TRAIN_IMAGES[config.data.dataset])
    absolute = scaled_lrs(config)
    peak = absolute.optimizer.lr
    factor = lr_factor(absolute.scheduler, peak, steps, config.max_epochs)
    return config, lambda step: factor(step) * peak, steps


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cifar10/minent", 390),
        ("imagenet/mec", 1251),
        ("imagenet/twist", 625),
        ("imagenet/twist_r50w2", 667),
        ("imagenet/twist_vit_b", 1251),
        ("imagenet/corinfomax", 834),
    ],
)
def test_steps_of_an_epoch(name, steps):
    assert rates(name)[2] == steps


@pytest.mark.parametrize(
    "world",
    [
        "num_nodes=4 devices=8 optimizer.batch_size=64",
        "num_nodes=1 devices=8 optimizer.batch_size=256",
        "num_nodes=2 devices=4 optimizer.batch_size=64 accumulate_grad_batches=4",
        "num_nodes=1 devices=1 optimizer.batch_size=64 accumulate_grad_batches=32",
    ],
)
def test_nodes_devices_and_accumulation_make_the_same_run(world):
    """16 x 128 images in other ways: same lr, at most one incomplete accumulation an epoch more."""
    config, rate, steps = rates("imagenet/twist_multicrop", world.split())
    _, published, published_steps = rates("imagenet/twist_multicrop")
    assert config.global_batch_size == 2048
    assert steps - published_steps == ("accumulate" in world)
    for epoch in (0, 5, 10, 400, 805):
        assert rate(epoch * steps) == pytest.approx(published(epoch * published_steps), rel=1e-5)


def test_minent_schedule():
    _, rate, steps = rates("cifar10/minent")
    assert rate(0) == pytest.approx(1e-3 / 500)
    assert [rate(499), rate(949 * steps)] == pytest.approx([1e-3, 1e-3])
    assert [rate(950 * steps), rate(975 * steps)] == pytest.approx([2e-4, 4e-5])


def test_mec_schedule():
    _, rate, steps = rates("imagenet/mec")
    assert rate(0) == 0.0
    assert [rate(12509), rate(12510)] == pytest.approx([2.0, 2.0])
    assert rate(100 * steps - 1) < 1e-6


def test_twist_schedules():
    _, rate, steps = rates("imagenet/twist_multicrop")
    assert [rate(10 * steps), rate(805 * steps)] == pytest.approx([4.0, 0.4])
    assert rate(800 * steps - 1) == pytest.approx(0.004, rel=1e-3)  # 0.001 of the peak
    assert rate(800 * steps) == 0.0
    _, rate, steps = rates("imagenet/twist_r50w2")
    assert [rate(10 * steps), rate(205 * steps)] == pytest.approx([3.75, 0.375])
    _, rate, steps = rates("imagenet/twist_vit_b")
    assert [rate(10 * steps), rate(300 * steps - 1)] == pytest.approx([3e-3, 3e-6], rel=1e-3)


def test_corinfomax_schedules():
    _, rate, steps = rates("cifar10/corinfomax")
    by_epoch = [rate(epoch * steps) for epoch in (0, 9, 10)]
    assert by_epoch == pytest.approx([0.003, 0.5, 0.5])
    assert rate(1000 * steps - 1) == pytest.approx(2.26e-6, rel=1e-3)  # as the official run ends
    r18, r50 = (load_recipe(f"imagenet100/corinfomax{end}").scheduler for end in ("", "_r50"))
    assert (r18.warmup_epochs, r50.warmup_epochs) == (10, 5)
    assert (r18.min_lr, r50.min_lr) == (5e-3, 5e-3)
    assert load_recipe("imagenet100/corinfomax_r50").seed == 10


# Backbones.


def backbone_of(name):
    backbone = load_recipe(name).backbone
    return build_backbone(backbone.name, backbone.stem, **backbone.kwargs)


def test_resnet50w2_is_resnet50_with_every_channel_doubled():
    from torchvision.models import resnet50

    def doubled(shape):
        inputs = [side if side == 3 else 2 * side for side in shape[1:2]]
        return (2 * shape[0], *inputs, *shape[2:])

    with torch.device("meta"):
        narrow = resnet50()
    narrow.fc = torch.nn.Identity()
    wide = backbone_of("imagenet/twist_r50w2")
    shapes = [tuple(parameter.shape) for parameter in wide.parameters()]
    expected = [doubled(tuple(parameter.shape)) for parameter in narrow.parameters()]
    assert sorted(shapes) == sorted(expected)
    assert wide.num_features == 4096
    assert sum(parameter.numel() for parameter in wide.parameters()) == 93907072


@pytest.mark.parametrize(
    ("name", "width", "heads", "drop"), [("deit_s", 384, 6, 0.0), ("vit_b", 768, 12, 0.1)]
)
def test_vits_take_both_sizes_of_crops(name, width, heads, drop):
    vit = backbone_of(f"imagenet/twist_{name}")
    with torch.no_grad():
        for size in (224, 96):
            assert vit(torch.zeros(1, 3, size, size)).shape == (1, width)
    assert (len(vit.blocks), vit.blocks[0].attn.num_heads) == (12, heads)
    assert getattr(vit.blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(drop)


# How recipes are written.


def files():
    return sorted(RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_names_the_source_of_its_values(path):
    lines = path.read_text().splitlines()
    if "protocols" not in path.parts:  # those are read by themselves, not composed by Hydra
        assert lines.pop(0) == "# @package _global_"
    header = " ".join(line[2:] for line in takewhile(lambda line: line[0] == "#", lines))
    source = re.search(r"@ [0-9a-f]{7}", header) or re.search(r"\bours\b", header)
    assert source, "header names no source"


@pytest.mark.parametrize("name", sorted(set(recipes()) - set(PUBLISHED)))
def test_a_recipe_that_is_not_published_says_so(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    if name.startswith("digits/"):
        assert "every value is ours" in text
        return
    body = text.partition("_self_\n")[2]
    values = [line for line in body.splitlines() if re.match(r" *\w+: \S", line)]
    assert values and [line for line in values if "# ours" not in line] == []


def test_no_key_of_a_recipe_is_given_twice():
    """YAML keeps the last one and says nothing."""

    def keys(node):
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            yield names
            for _, value in node.value:
                yield from keys(value)
        elif isinstance(node, yaml.SequenceNode):
            yield from chain.from_iterable(map(keys, node.value))

    for path in files():
        for names in keys(yaml.compose(path.read_text())):
            assert len(names) == len(set(names)), (path, names)


def test_the_package_holds_every_recipe():
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    keywords = next(
        node.keywords
        for node in ast.walk(ast.parse(setup))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    data = next(ast.literal_eval(k.value) for k in keywords if k.arg == "package_data")
    packed = {path for glob in data["solo_minent"] for path in RECIPES.parent.glob(glob)}
    assert set(files()) <= packed
