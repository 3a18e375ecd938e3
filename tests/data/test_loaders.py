"""Loaders: which one a configuration gets, what corrupt images do, and the test images."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from solo_minent.data import loaders
from solo_minent.data.loaders import (
    ShareBatches,
    eval_loader,
    pretrain_loader,
    validation_loader,
)
from solo_minent.data.transforms import NORMALIZATION
from solo_minent.errors import UserError


def test_large_crops_first(digits_config):
    config = digits_config()
    config.augmentations = [
        {"crop_size": 16, "num_crops": 1},
        {"crop_size": 8, "num_crops": 2},
        {"crop_size": 16, "num_crops": 1},
    ]
    views = next(iter(pretrain_loader(config)))[1]
    assert [v.shape[-1] for v in views] == [16, 16, 8, 8]


def test_eval_loader_keeps_order_and_the_last_batch(digits_config):
    config = digits_config(val_images=50, num_workers=1)
    loader = eval_loader(config, "test", batch_size=16)
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [16, 16, 16, 2]
    targets = torch.cat([t for _, t in batches])
    assert targets.tolist() == loader.dataset.images.targets.tolist()
    assert len(eval_loader(config, "train").dataset) == 100


@pytest.mark.parametrize("images", [1, 3, 4, 5, 16, 17, 63, 64, 65, 83])
@pytest.mark.parametrize("batch_size", [1, 2, 16, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_validation_is_shared_out_evenly(monkeypatch, images, batch_size, world):
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(loaders, "rank_and_world", lambda rank=rank: (rank, world))
        batches = ShareBatches(images, batch_size)
        ranks.append(list(batches))
        assert len(batches) == len(ranks[-1])
        sizes = [len(batch) for batch in ranks[-1]]
        assert max(sizes) - min(sizes) <= 1 <= min(sizes)
        assert max(sizes) <= batch_size + (world > 1 and batch_size == 1)
    assert len({len(batches) for batches in ranks}) == 1  # or the processes wait for ever
    shares = [sum(batches, []) for batches in ranks]
    if images < world:
        assert shares == [list(range(images))] * world
    else:
        assert sum(shares, []) == list(range(images))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_validation_has_the_images_of_the_test_loader(digits_config, monkeypatch):
    config = digits_config(val_images=50)
    config.evaluation.batch_size = 16
    test = eval_loader(config, "test", 16)
    expected = [torch.cat(parts) for parts in zip(*test, strict=True)]
    for world in (1, 3):
        batches = []
        for rank in range(world):
            place = (rank, world)
            monkeypatch.setattr(loaders, "rank_and_world", lambda place=place: place)
            batches += list(validation_loader(config, test))
        found = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_normalisation_comes_from_the_data_set_or_the_config(digits_config):
    config = digits_config()
    image = next(iter(eval_loader(config, "test")))[0]
    mean, std = NORMALIZATION["digits"]
    config.data.mean, config.data.std = [0.0] * 3, [1.0] * 3
    plain = next(iter(eval_loader(config, "test")))[0]
    assert 0.0 <= plain.min() <= plain.max() <= 1.0
    torch.testing.assert_close(image, (plain - mean[0]) / std[0])


def test_never_more_workers_than_cores(digits_config):
    cores = len(os.sched_getaffinity(0))
    assert pretrain_loader(digits_config(num_workers=500)).num_workers == cores
    config = digits_config(num_workers=500)
    config.devices = cores
    config.optimizer.batch_size = 1
    assert pretrain_loader(config).num_workers == 1


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("optimizer.batch_size", 128, "batch_size 128 is larger than the training set: 100 images"),
        ("devices", 8, "batch_size 16 x 8 processes is larger"),
        ("data.dataset", "digit", "Did you mean digits"),
        ("augmentations", [], "augmentations"),
    ],
)
def test_bad_input_is_one_clear_error(digits_config, path, value, words):
    config = digits_config()
    target = config
    *parents, name = path.split(".")
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, name, value)
    with pytest.raises(UserError, match=words):
        pretrain_loader(config)


@pytest.fixture
def folder_config(digits_config, image_folder):
    """A run on a folder of 24 training images, of which `corrupt` are cut."""

    def build(corrupt=(), **data):
        root = image_folder(train__cat=12, train__dog=12, val__cat=4, val__dog=4)
        files = sorted(root.glob("train/*/*.png"))
        for index in corrupt:
            files[index].write_bytes(files[index].read_bytes()[:60])
        config = digits_config(root=str(root), train_images=None, **data)
        config.data.dataset = "custom"
        config.optimizer.batch_size = 6
        return config

    return build


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_ends_the_epoch_and_is_named(folder_config, workers):
    loader = pretrain_loader(folder_config([2], num_workers=workers))
    with pytest.raises(UserError, match=r"cannot read an image: .*cat/1.*\.png .*on_corrupt=skip"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_replaced_and_counted(folder_config, workers):
    loader = pretrain_loader(folder_config([2, 3, 23], num_workers=workers, on_corrupt="skip"))
    for number in range(2):
        loader.set_epoch(number)
        seen = torch.cat([batch[0] for batch in loader]).tolist()
        whole = [index for index in range(24) if index not in (2, 3, 23)]
        assert sorted(seen) == sorted([*whole, 4, 4, 0])
        assert loader.readable.corrupt.nonzero().flatten().tolist() == [2, 3, 23]


def test_nothing_that_can_be_read_is_one_error(folder_config):
    config = folder_config(range(24), on_corrupt="skip")
    with pytest.raises(UserError, match="no image can be decoded: 24 images"):
        list(pretrain_loader(config))


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_of_an_evaluation(folder_config, workers, capsys):
    with pytest.raises(UserError, match="cannot read an image"):
        list(eval_loader(folder_config([0, 5], num_workers=workers), "train", 5))
    config = folder_config([0, 5], num_workers=workers, on_corrupt="skip")
    loader = eval_loader(config, "train", 5)
    assert [len(images) for images, _ in loader] == [4, 4, 5, 5, 4]
    assert "left out 2 corrupt images, such as" in capsys.readouterr().err
    assert len(loader.dataset.corrupt) == 2


def test_an_evaluation_needs_labels(folder_config, tmp_path):
    config = folder_config()
    train = tmp_path / "set" / "train"
    for number, path in enumerate(sorted(train.glob("*/*.png"))):
        path.rename(train / f"{number}.png")
    for name in ("cat", "dog"):
        (train / name).rmdir()
    batches = list(pretrain_loader(config))
    assert len(batches) == 4 and all((targets == -1).all() for _, _, targets in batches)
    with pytest.raises(UserError, match="data set has no labels"):
        eval_loader(config, "train")


def test_late_augmentations_reach_the_workers(digits_config):
    config = digits_config(num_workers=1)
    config.late_epoch = 2
    config.late_augmentations = [{"crop_size": 8, "num_crops": 2}]
    loader = pretrain_loader(config)
    sizes = []
    for epoch in (0, 1, 2, 3):
        loader.set_epoch(epoch)
        sizes.append({view.shape[-1] for _, views, _ in loader for view in views})
    assert sizes == [{16}, {16}, {8}, {8}]


def test_an_evaluation_has_the_labelled_images_of_the_run(digits_config, monkeypatch):
    """STL-10: a subset of all images is trained on; those of it with labels are evaluated."""
    from solo_minent.data.images import ArrayImages

    def load(dataset, root, split, subset, seed, **kwargs):
        assert (split, subset) == ("pretrain", 30)
        targets = np.where(np.arange(30) % 3 == 0, 1, -1)
        return ArrayImages(np.zeros((30, 8, 8, 3), np.uint8), targets, ["a", "b"])

    monkeypatch.setattr(loaders, "load_split", load)
    loader = eval_loader(digits_config(train_images=30), "train")
    assert len(loader.dataset) == 10 and (loader.dataset.images.targets == 1).all()


def test_what_an_evaluation_left_out_is_said_when_it_ends_early(folder_config, capsys):
    """Lightning asks for no batch after the last."""
    batches = iter(eval_loader(folder_config([23], on_corrupt="skip"), "train", 5))
    for _ in range(5):
        next(batches)
    assert "left out" not in capsys.readouterr().err
    batches.close()
    assert "left out 1 corrupt images" in capsys.readouterr().err


def test_evaluation_workers_of_a_dali_run_are_not_forked(folder_config):
    loader = eval_loader(folder_config(format="dali", num_workers=1), "train", 12)
    assert loader.multiprocessing_context.get_start_method() == "forkserver"
    assert [len(images) for images, _ in loader] == [12, 12]
