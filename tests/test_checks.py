"""Values that no run can have are refused in one line, before any work."""

import copy
import functools
import math

import pytest

from solo_minent.checks import CHOICES, RANGES, check
from solo_minent.config import load_recipe
from solo_minent.errors import UserError

NOT_FINITE = [
    *("optimizer.lr", "optimizer.classifier_lr", "optimizer.weight_decay", "gradient_clip_val"),
    "optimizer.weight_decay_end",
    *("scheduler.warmup_epochs", "scheduler.warmup_start_lr", "scheduler.min_lr"),
    *("scheduler.gamma", "scheduler.restart_lr", "scheduler.restart_warmup_epochs"),
    *("evaluation.linear.lr", "evaluation.linear.final_lr", "evaluation.linear.weight_decay"),
    *("evaluation.detect.lr", "evaluation.detect.weight_decay", "evaluation.detect.gamma"),
    *("evaluation.finetune.lr", "evaluation.finetune.backbone_lr", "evaluation.linear.gamma"),
]
TOO_SMALL = {
    **dict.fromkeys(["optimizer.lr", "gradient_clip_val", "scheduler.gamma"], 0),
    **dict.fromkeys(["evaluation.linear.lr", "evaluation.linear.gamma"], 0),
    **dict.fromkeys(["evaluation.finetune.lr", "evaluation.finetune.backbone_lr"], 0),
    **dict.fromkeys(["evaluation.finetune.gamma", "evaluation.finetune.backbone_gamma"], 0),
    **dict.fromkeys(["evaluation.linear.final_lr", "evaluation.linear.blocks"], -1),
    **dict.fromkeys(["evaluation.linear.momentum", "evaluation.finetune.momentum"], -0.1),
    **dict.fromkeys(["evaluation.linear.resize", "evaluation.finetune.resize"], 223),
    **dict.fromkeys(["evaluation.finetune.max_epochs", "evaluation.linear.sweep_part"], 0),
    "evaluation.finetune.batch_size": 1,
    "evaluation.finetune.weight_decay": -1,
    **dict.fromkeys(["scheduler.restart_lr", "scheduler.restart_epoch"], 0),
    **dict.fromkeys(["max_epochs", "devices", "num_nodes", "accumulate_grad_batches"], 0),
    **dict.fromkeys(["checkpoint.every_epochs", "evaluation.batch_size", "evaluation.knn_k"], 0),
    **dict.fromkeys(["evaluation.linear.max_epochs", "evaluation.linear.batch_size"], 0),
    **dict.fromkeys(["data.train_images", "data.val_images"], 0),
    **dict.fromkeys(["seed", "data.num_workers", "optimizer.classifier_lr"], -1),
    **dict.fromkeys(["optimizer.weight_decay", "evaluation.linear.weight_decay"], -1),
    **dict.fromkeys(["scheduler.warmup_epochs", "scheduler.warmup_steps"], -1),
    **dict.fromkeys(["scheduler.warmup_start_lr", "scheduler.min_lr"], -1),
    **dict.fromkeys(["scheduler.restart_warmup_epochs", "evaluation.knn_every"], -1),
    **dict.fromkeys(["monitor_every", "guard.skip"], -1),
    **dict.fromkeys(["checkpoint.every_steps", "checkpoint.every_minutes", "process_timeout"], 0),
    **{
        f"evaluation.detect.{key}": value
        for value, keys in {
            0: "steps batch_size lr gamma checkpoint_every",
            -1: "momentum weight_decay weight_decay_norm warmup_steps warmup_factor precise_bn",
            31: "max_size test_size",
        }.items()
        for key in keys.split()
    },
    "optimizer.weight_decay_end": -1,
    "late_epoch": -1,
    "optimizer.batch_size": 1,
    "data.image_size": 7,
}


@functools.cache
def loaded(recipe):
    return load_recipe(recipe)


def changed(recipe, values):
    """A recipe's configuration with `{"optimizer.lr": 1.0}`, not checked."""
    config = copy.deepcopy(loaded(recipe))
    for path, value in values.items():
        *parts, last = path.split(".")
        holder = config
        for part in parts:
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        if isinstance(holder, dict):
            holder[last] = value
        else:
            setattr(holder, last, value)
    return config


def refused(values, recipe="cifar10/mec"):
    with pytest.raises(UserError) as caught:
        check(changed(recipe, values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_range_is_tried():
    assert TOO_SMALL.keys() == RANGES.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *TOO_SMALL.items(),
        *[(key, value) for key in NOT_FINITE for value in (math.nan, math.inf)],
        ("scheduler.gamma", 1.5),
        ("seed", 2**32),
    ],
)
def test_numbers_out_of_range(key, value):
    message = refused({key: value})
    assert message.startswith(f"{key} is out of range: {value}")
    assert f"Set {key}={RANGES[key].fix}." in message


def test_the_fix_of_every_range_is_in_it():
    assert all(allowed.fix == "null" or allowed.holds(allowed.fix) for allowed in RANGES.values())


@pytest.mark.parametrize("key", CHOICES)
def test_words_that_are_none_of_the_choices(key):
    assert refused({key: "tpu"}).startswith(f"{key} is unknown: tpu. It is one of ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "8-true"}, "precision is unknown: 8-true"),
        ({"name": ""}, "name is no folder name: ''"),
        ({"name": ".."}, "name is no folder name: '..'"),
        ({"name": "a/b"}, "name is no folder name: 'a/b'"),
        ({"name": "a\n"}, "name is no folder name: 'a\\n'"),
        ({"data.dataset": "cifar"}, "unknown data set: cifar"),
        ({"data.mean": [0.5, 0.5]}, "data.mean is not one number a channel: [0.5, 0.5]"),
        ({"data.mean": [0.0, 0.0, math.nan]}, "data.mean is out of range: [0.0, 0.0, nan]"),
        ({"data.std": [1.0, 1.0, 0.0]}, "data.std is out of range: [1.0, 1.0, 0.0]"),
        ({"scheduler.name": "foo"}, "scheduler is unknown: foo"),
        ({"scheduler.interval": "hour"}, "scheduler interval is unknown: hour"),
        ({"scheduler.restart_epoch": 5}, "scheduler restart is wrong: epoch 5 with lr None"),
        ({"backbone.kwargs.name": "x"}, "backbone.kwargs.name is set elsewhere: x"),
        ({"backbone.kwargs.stem": "x"}, "backbone.kwargs.stem is set elsewhere: x"),
        ({"optimizer.name": "adam"}, "kwargs do not suit adam: momentum. It takes betas"),
        ({"optimizer.kwargs.lr": 1}, "optimizer.lr is a key of its own. Remove it with ~optimizer"),
        ({"optimizer.kwargs.eta": 1}, "optimizer.kwargs do not suit sgd: eta"),
        ({"optimizer.kwargs.momentum": -1}, "Invalid momentum value: -1"),
        ({"optimizer.kwargs.momentum": "much"}, "optimizer.kwargs do not suit sgd: {'momentum'"),
        ({"optimizer.kwargs.momentum": math.nan}, "optimizer.kwargs.momentum is not finite: nan"),
        (
            {"optimizer.name": "lars", "optimizer.kwargs.eta": -1},
            "optimizer.kwargs.eta is out of range: -1",
        ),
        ({"optimizer.name": "lars", "optimizer.kwargs.fused": True}, "do not suit lars: fused"),
        (
            {"data.image_size": 64},
            "crop_size 32, data.image_size 64. The first views are as large as the images. Set "
            "data.image_size=32 or augmentations.0.crop_size=64.",
        ),
        ({"method_kwargs.eps": math.nan}, "method_kwargs.eps is out of range: nan"),
        ({"evaluation.linear.sweep": [0.1, 0.0]}, "evaluation.linear.sweep is out of range: 0.0"),
        ({"evaluation.linear.sweep": [math.nan]}, "evaluation.linear.sweep is out of range: nan"),
        ({"evaluation.linear.crop_scale": [0.5, 0.1]}, "no range of shares: [0.5, 0.1]"),
        ({"evaluation.finetune.crop_scale": [0.1]}, "no range of shares: [0.1]"),
        ({"evaluation.linear.final_lr": 0.0}, "final_lr is no end of an exponential: 0.0"),
        ({"evaluation.finetune.lr_decay_epochs": [0]}, "lr_decay_epochs is out of range: 0"),
        ({"method_kwargs.hidden_dim": None}, "method_kwargs do not suit mec: Incompatible value"),
    ],
)
def test_values_that_do_not_fit(values, message):
    assert message in refused(values)


@pytest.mark.parametrize(
    ("method", "key", "values"),
    [
        ("mec", "hidden_dim", [0, -1]),
        ("mec", "output_dim", [0]),
        ("mec", "pred_hidden_dim", [0]),
        ("mec", "eps", [math.nan, math.inf, -1.0]),
        ("mec", "lamda_warmup", [math.nan, math.inf, 0.5]),
        ("mec", "lamda_warmup_epochs", [-1]),
        ("mec", "base_momentum", [math.nan]),
        ("minent", "hidden_dim", [0]),
        ("minent", "num_layers", [0]),
        ("corinfomax", "alpha", [math.nan, math.inf, -1.0]),
        ("corinfomax", "eps", [math.nan, math.inf, 0.0]),
        ("corinfomax", "R_ini", [math.nan, math.inf, 0.0]),
        ("corinfomax", "la_mu", [math.nan, 1.0]),
        ("corinfomax", "hidden_dim", [0]),
    ],
)
def test_numbers_of_the_methods(method, key, values):
    for value in values:
        message = refused({f"method_kwargs.{key}": value}, f"digits/{method}")
        assert str(value) in message.partition(". ")[0]
        assert f"method_kwargs.{key}=" in message


VIEW = {"crop_size": 32, "num_crops": 1}


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.kwargs.nesterov": True},
        {"optimizer.name": "adamw", "optimizer.kwargs": {"betas": [0.9, 0.99]}},
        {"optimizer.name": "lars", "optimizer.kwargs": {"eta": 0.02, "clip_lr": True}},
        {"data.image_size": 64, "augmentations": [{"crop_size": 64, "num_crops": 2}]},
        # One view of the image size, without saying so.
        {"augmentations": [VIEW, {"crop_size": 32}]},
        {"augmentations": [{"num_crops": 1}, VIEW]},
        {"augmentations": [VIEW, {"crop_size": None}]},
        {"gradient_clip_val": None, "scheduler.warmup_steps": None, "evaluation.knn_every": 0},
        {"optimizer.classifier_lr": 0.0, "seed": 2**32 - 1, "name": "a-b_C.1"},
    ],
)
def test_values_at_the_edge_are_taken(values):
    check(changed("cifar10/mec", values))


@pytest.mark.parametrize(
    "augmentations", [[VIEW, {"crop_size": 32}], [{"num_crops": 1}, VIEW], [VIEW, {}], [VIEW, VIEW]]
)
def test_host_and_loader_count_the_same_crops(augmentations):
    from solo_minent.data.augmentations import crop_counts, parse_views
    from solo_minent.host import shared

    config = changed("cifar10/mec", {"augmentations": augmentations})
    ours = crop_counts(parse_views(augmentations, config.data.image_size))
    assert shared.crop_counts(shared.augmentations(config)) == ours == (2, 0)


def test_a_weight_decay_that_ends_must_start():
    with pytest.raises(UserError, match="weight_decay_end has no start: 0.1"):
        check(changed("digits/minent", {"optimizer.weight_decay_end": 0.1}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"late_epoch": 3}, "late_epoch and late_augmentations belong together"),
        ({"late_augmentations": [VIEW, VIEW]}, "late_epoch and late_augmentations belong"),
        ({"late_epoch": 3, "late_augmentations": [VIEW]}, "late_augmentations do not suit mec"),
        ({"late_epoch": 3, "late_augmentations": [{"crop_size": 16}]}, "not of the image size"),
    ],
)
def test_late_augmentations_are_checked(change, words):
    with pytest.raises(UserError, match=words):
        check(changed("cifar10/mec", change))


def test_the_late_views_are_as_many_as_the_early_ones():
    small = {"crop_size": 16, "num_crops": 3}
    change = {"augmentations": [VIEW, VIEW], "late_augmentations": [VIEW, VIEW, small]}
    with pytest.raises(UserError, match="late_augmentations make other views"):
        check(changed("cifar10/twist", change | {"late_epoch": 3}))
