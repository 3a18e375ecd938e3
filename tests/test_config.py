"""Recipes compose; whatever is wrong with a configuration is said in one line before work."""

import pytest

from solo_minent.config import (
    closest,
    differences,
    load_recipe,
    load_run,
    recipes,
    scaled_lrs,
    to_yaml,
)
from solo_minent.errors import UserError
from solo_minent.methods import available


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_composes(name):
    config = load_recipe(name)
    dataset, method = name.split("/")
    assert (config.data.dataset, config.method) == (dataset, method)
    assert set(config.method_kwargs) == set(available()[method].Params.__dataclass_fields__)


def test_every_method_has_both_recipes():
    assert {f"{d}/{m}" for d in ("digits", "cifar10") for m in available()} <= set(recipes())


def test_published_cifar10_values():
    minent, corinfomax = load_recipe("cifar10/minent"), load_recipe("cifar10/corinfomax")
    assert minent.method_kwargs["heads"] == [2048, 1024, 512, 256, 128, 64, 32, 16]
    assert minent.augmentations[0]["order"][:3] == ["color_jitter", "grayscale", "rrc"]
    assert (minent.optimizer.name, minent.optimizer.lr, minent.max_epochs) == ("adam", 1e-3, 1000)
    assert corinfomax.method_kwargs["alpha"] == 250.0
    assert [a["gaussian_blur"]["prob"] for a in corinfomax.augmentations] == [1.0, 0.1]
    assert scaled_lrs(corinfomax).optimizer.lr == 0.5  # absolute, though the batch is 512


def test_lr_scales_with_every_image_of_a_step():
    config = load_recipe("cifar10/mec", ["devices=4", "num_nodes=2", "accumulate_grad_batches=3"])
    assert config.global_batch_size == 512 * 4 * 2 * 3
    scaled = scaled_lrs(config)
    assert scaled.optimizer.lr == pytest.approx(0.5 * 512 * 24 / 256)
    assert scaled.optimizer.classifier_lr == config.optimizer.classifier_lr
    assert scaled_lrs(scaled) == scaled


def test_overrides_reach_open_dictionaries():
    config = load_recipe(
        "cifar10/minent",
        ["method_kwargs.heads=[128]", "backbone.kwargs.zero_init_residual=true", "max_epochs=3"],
    )
    assert config.method_kwargs["heads"] == [128]
    assert config.backbone.kwargs == {"zero_init_residual": True}
    assert config.max_epochs == 3


def test_a_recipe_of_the_users_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [/cifar10/mec, _self_]\nmax_epochs: 7\n")
    config = load_recipe(str(own), ["seed=3"])
    assert (config.method, config.max_epochs, config.seed) == ("mec", 7, 3)


def test_run_folder_round_trip(tmp_path):
    config = load_recipe("digits/twist", ["optimizer.lr=0.01"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = load_run(tmp_path, ["evaluation.knn_k=7"])
    assert differences(config, again) == ["evaluation.knn_k: 5 -> 7"]
    assert again.run_dir == tmp_path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=minnent"], "method is unknown: minnent.*Set method=minent"),
        (["optimzer.lr=1"], "key is unknown: optimzer.lr. The nearest is optimizer.lr"),
        (["max_epochs"], "override is not key=value: max_epochs"),
        (["max_epochs=many"], "configuration does not compose: .*many"),
        (["max_epochs=0"], "max_epochs is too small: 0"),
        (["optimizer.batch_size=1"], "optimizer.batch_size is too small: 1"),
        (["optimizer.name=lion"], "optimizer.name is unknown: lion"),
        (["precision=8"], "precision is unknown: 8"),
        (["data.format=tar"], "data.format is unknown: tar"),
        (["method_kwargs.heads=[1]"], "MinEnt heads are wrong"),
        (["method_kwargs.heads=twelve"], "method_kwargs do not suit minent"),
        (["method_kwargs.head=[128]"], "method_kwargs do not suit minent.*It takes heads"),
        (["method=mec", "~method_kwargs", "+method_kwargs.order=3"], "MEC order is not even: 3"),
        (["augmentations.0.num_crops=3"], "augmentations do not suit minent: 3 large and 0 small"),
        (["augmentations=[]"], "augmentations"),
    ],
)
def test_wrong_configurations_are_refused_in_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("cifar10/minent", overrides)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="recipe is unknown: cifar/mnt.*--recipe cifar10/minent"):
        load_recipe("cifar/mnt")
    with pytest.raises(UserError, match="recipe file is missing: no/such.yaml"):
        load_recipe("no/such.yaml")


def test_a_recipe_with_gaps_names_them(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [/schema, _self_]\nmethod: mec\n")
    with pytest.raises(UserError, match="lacks values: backbone.name, data.dataset"):
        load_recipe(str(own))


@pytest.mark.parametrize("text", ["{", "method: 3\nnonsense: 1\n", "- 1\n"])
def test_damaged_run_configuration(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="run configuration does not load"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="run configuration is missing"):
        load_run(tmp_path / "elsewhere")


def test_closest_always_has_an_answer():
    assert closest("mnt", ["mec", "minent"]) in ("mec", "minent")
    assert closest("", ["mec"]) == "mec"
