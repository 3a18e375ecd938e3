"""Recipes compose; whatever is wrong with a configuration is said in one line before work."""

import pytest

from solo_minent.config import (
    check_writable,
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
    dataset, run = name.split("/")
    method = run.split("_")[0]  # twist_vit_b is TWIST with another backbone
    assert (config.data.dataset, config.method) == (dataset, method)
    assert set(config.method_kwargs) == set(available()[method].Params.__dataclass_fields__)


def test_every_method_has_a_recipe_that_runs_anywhere():
    assert {f"digits/{method}" for method in available()} <= set(recipes())


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


def test_a_key_can_be_removed():
    removed = load_recipe("cifar10/mec", ["~backbone.kwargs.zero_init_residual"])
    assert load_recipe("cifar10/mec").backbone.kwargs == {"zero_init_residual": True}
    assert removed.backbone.kwargs == {}


def test_a_recipe_of_the_users_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [/cifar10/mec, _self_]\nmax_epochs: 7\n")
    config = load_recipe(str(own), ["seed=3"])
    assert (config.method, config.max_epochs, config.seed) == ("mec", 7, 3)


def test_run_folder_round_trip(tmp_path):
    folder = tmp_path / "a b=c,d (1)"
    folder.mkdir()
    config = load_recipe("digits/twist", ["optimizer.lr=0.01", "backbone.kwargs.a=1"])
    (folder / "config.yaml").write_text(to_yaml(config))
    assert differences(config, load_run(folder)) == []
    again = load_run(folder, ["evaluation.knn_k=7", "~backbone.kwargs.a"])
    assert again.evaluation.knn_k == 7
    assert differences(config, again) == ["backbone.kwargs.a: 1 -> absent"]
    assert again.run_dir == folder
    with pytest.raises(UserError, match="key is unknown: max_epoch"):
        load_run(folder, ["max_epoch=3"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=minnent"], "method is unknown: minnent.*Set method=minent"),
        (["optimzer.lr=1"], "key is unknown: optimzer.lr. The nearest is optimizer.lr"),
        (["+foo=1"], "key is unknown: foo"),
        (["~nope"], "key is unknown: nope.*Leave ~nope out"),
        (["~optimizer.lr"], "key cannot be removed: optimizer.lr.*Leave ~optimizer.lr out"),
        (["~method"], "recipe cifar10/minent lacks values: method.*Add method="),
        (["max_epochs"], "override is not key=value: max_epochs"),
        (["=5"], "override is not key=value: =5"),
        (["~"], "override is not key=value: ~"),
        # The first override is right: the blame is the second one's.
        (["~backbone.kwargs.a", "max_epochs=many"], "removed: backbone.kwargs.a"),
        (["backbone.kwargs.a=1", "max_epochs=many"], "max_epochs has a wrong value: many.*Integer"),
        (["method_kwargs.norm=l2", "max_epoch=3"], "key is unknown: max_epoch"),
        (["max_epochs=2.5"], "max_epochs has a wrong value: 2.5.*Correct max_epochs="),
        (["max_epochs=1,2"], "max_epochs has a wrong value: 1,2"),
        (["name=a=b"], "name has a wrong value: a=b"),
        (["seed=null"], "seed has a wrong value: null"),
        (["method_kwargs=null"], "method_kwargs has a wrong value: null"),
        (["backbone.kwargs=null"], "backbone.kwargs has a wrong value: null"),
        (["optimizer=null"], "optimizer is a group of keys: null. It holds optimizer.name"),
        (["evaluation.linear=5"], "evaluation.linear is a group of keys: 5.*Set evaluation.linear"),
        (["data.root=${nope}"], "data.root has a wrong value.*nope"),
        (["method_kwargs.heads=[1]"], "MinEnt heads are wrong"),
        (["method_kwargs.heads=twelve"], "method_kwargs do not suit minent"),
        (["method_kwargs.head=[128]"], "method_kwargs do not suit minent.*It takes heads"),
        (["method=mec", "~method_kwargs", "+method_kwargs.order=3"], "MEC order is not even: 3"),
        (["augmentations.0.num_crops=3"], "augmentations do not suit minent: 3 large and 0 small"),
        (["augmentations=[]"], "augmentations"),
        (["augmentations=null"], "augmentations has a wrong value: null"),
        (["augmentations.7.num_crops=1"], "augmentations.7.num_crops has a wrong value: 1"),
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


DAMAGED = [b"{", b"method: 3\nnonsense: 1\n", b"- 1\n", b"5\n", b"a: b: c", b"\x80\xff", b"\x00"]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_named_in_one_line(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"configuration {path} does not load.*restore") as run:
        load_run(tmp_path)
    with pytest.raises(UserError, match=f"recipe {path} does not load.*restore") as recipe:
        load_recipe(str(path), ["max_epochs=3"])
    assert "\n" not in f"{run.value}{recipe.value}"


def test_empty_and_missing_files(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=f"recipe {path} lacks values: backbone.name"):
        load_recipe(str(path))
    with pytest.raises(UserError, match=f"configuration {path} lacks values: backbone.name"):
        load_run(tmp_path)
    path.rename(tmp_path / "own.yml")
    with pytest.raises(UserError, match="another ending: .*own.yml.*mv .*own.yml .*own.yaml"):
        load_recipe(str(tmp_path / "own.yml"))
    with pytest.raises(UserError, match="run configuration is missing"):
        load_run(tmp_path / "elsewhere")


def test_a_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def check(folder):
        check_writable(load_recipe("digits/mec", [f"output_dir='{folder}'"]))

    check(tmp_path / "some" / "where")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be made: .*/file is no folder.*Set output_dir="):
        check(tmp_path / "file" / "runs")
    with pytest.raises(UserError, match="dangling is no folder"):
        check(tmp_path / "dangling")
    with pytest.raises(UserError, match="/proc belongs to the system"):
        check("/proc/x")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=f"{tmp_path} may not be written"):
        check(tmp_path / "runs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.parametrize(
    "root", ["/data/фото (1), a=b", "/it's here", "/plain/path", "'/quoted one'"]
)
def test_a_path_may_have_any_letters(root):
    config = load_recipe("cifar10/minent", [f"data.root={root}"])
    assert config.data.root == root.strip("'")
    assert load_recipe("cifar10/minent", ["data.root=null"]).data.root is None


def test_a_run_goes_on_when_corrupt_images_may_be_skipped():
    old = load_recipe("cifar10/minent")
    assert differences(old, load_recipe("cifar10/minent", ["data.on_corrupt=skip"])) == []
