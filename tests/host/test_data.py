"""solo-learn's own loaders through `fit_data`: folders of images, with PIL and with DALI."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from solo_minent import host
from solo_minent.errors import UserError
from solo_minent.host.peers import own_loader

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
NO_CHANGE = {"crop_size": 32, "rrc": {"crop_min_scale": 1.0, "crop_max_scale": 1.0}}


@pytest.fixture
def folder(tmp_path):
    """20 training and 6 validation images of 32 pixels, each of one colour, in two classes."""
    for part, n in (("train", 20), ("val", 6)):
        for i in range(n):
            path = tmp_path / part / f"class{i % 2}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (10 * i, 100 + 50 * (i % 2), 7)).save(path)
    return tmp_path


def make(run_config, folder, augmentations, **data):
    data = {"root": str(folder), "mean": MEAN, "std": STD} | data
    return run_config(augmentations=augmentations, data=data)


def pixels(batch: torch.Tensor) -> torch.Tensor:
    """Undoes the normalisation: (B, 3, H, W) of 0 … 255."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (batch * std + mean) * 255


def test_image_folder(run_config, folder):
    config = make(run_config, folder, [NO_CHANGE | {"num_crops": 2}])
    data = host.fit_data(config)
    batches = list(data["train_dataloaders"])
    assert len(batches) == 2  # 20 images in batches of 8, the rest dropped
    seen = torch.cat([indexes for indexes, _, _ in batches])
    assert len(set(seen.tolist())) == 16
    for _, views, labels in batches:
        assert [view.shape for view in views] == [(8, 3, 32, 32)] * 2
        green = pixels(views[0])[:, 1].mean(dim=(1, 2))
        torch.testing.assert_close(green, 100 + 50.0 * labels, rtol=0, atol=0.6)
    (images, labels), *rest = data["val_dataloaders"]
    assert not rest
    torch.testing.assert_close(
        pixels(images)[:, 1].mean(dim=(1, 2)), 100 + 50.0 * labels, rtol=0, atol=0.6
    )


def test_augmentations_reach_the_images(run_config, folder):
    off = {"solarization": {"enabled": False, "prob": 1.0}}
    never = NO_CHANGE | off | {"num_crops": 1}
    always = never | {"crop_size": 16, "solarization": {"prob": 1.0}, "grayscale": {"prob": 1.0}}
    config = make(run_config, folder, [never, always])
    _, (plain, changed), _ = next(iter(host.fit_data(config)["train_dataloaders"]))
    assert plain.shape[-1] == 32
    assert changed.shape[-1] == 16
    red, green, blue = pixels(changed).unbind(1)
    torch.testing.assert_close(red, green, rtol=0, atol=0.6)
    torch.testing.assert_close(red, blue, rtol=0, atol=0.6)
    red, green, _ = pixels(plain).unbind(1)
    assert (red - green).abs().max() > 10


@pytest.mark.parametrize("n", [20, 16])
def test_dali_on_the_cpu(run_config, folder, trainer, n):
    """Right pixels and labels, and the same number of batches in every epoch.

    Where the batches do not divide the images, DALI shows the dropped rest in the next epoch.
    """
    for path in sorted((folder / "train").rglob("*.png"))[n:]:
        path.unlink()
    augmentations = [NO_CHANGE | {"num_crops": 2}, NO_CHANGE | {"crop_size": 16, "num_crops": 1}]
    config = make(run_config, folder, augmentations, format="dali", num_workers=1)
    data = host.fit_data(config)["datamodule"]
    data.trainer = trainer()
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 2
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == 2
        colours = []
        for _, views, labels in batches:
            assert [tuple(view.shape[1:]) for view in views] == [(3, s, s) for s in (32, 32, 16)]
            colour = pixels(views[0].cpu()).mean(dim=(2, 3))
            torch.testing.assert_close(colour[:, 1], 100 + 50.0 * labels.cpu(), rtol=0, atol=1)
            colours += np.round(colour[:, 0].numpy() / 10).astype(int).tolist()
        assert len(colours) == 16
        assert n == 20 or len(set(colours)) == 16
    (images, _), *rest = data.val_dataloader()
    assert images.shape == (6, 3, 32, 32)
    assert not rest


def test_fit_through_dali(tiny, run_config, folder, backbone, trainer):
    augmentations = [NO_CHANGE | {"num_crops": 2}]
    config = make(run_config, folder, augmentations, format="dali", num_workers=1)
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=2, online_knn=1)
    fit = trainer(2)
    fit.fit(module, **host.fit_data(config))
    assert fit.global_step == 4
    assert fit.callback_metrics["val_acc5"] == 100
    assert 0 <= fit.callback_metrics["val_knn_acc1"] <= 100


def test_no_val_folder(run_config, folder):
    (folder / "val").rename(folder / "other")
    config = make(run_config, folder, [NO_CHANGE | {"num_crops": 2}])
    assert host.fit_data(config)["val_dataloaders"] is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train_images": 8}, "have no data.train_images: 8.*data.train_images=null"),
        ({"file_list": "list.txt"}, "have no data.file_list"),
        ({"on_corrupt": "skip"}, "have no data.on_corrupt: skip.*dali.pipeline=own"),
    ],
)
def test_what_solo_learns_loaders_cannot_is_refused(run_config, folder, data, words):
    with pytest.raises(UserError, match=words):
        host.fit_data(make(run_config, folder, [NO_CHANGE | {"num_crops": 2}], **data))


def test_missing_folder(run_config, tmp_path):
    config = make(run_config, tmp_path / "nowhere", [NO_CHANGE | {"num_crops": 2}])
    with pytest.raises(UserError, match="data.root has no images.*nowhere"):
        host.fit_data(config)


if host.HOST == "wheel":

    def test_unsupported_augmentation(run_config, folder):
        for wrong in (NO_CHANGE | {"equalization": {"prob": 0.1}}, {"crop_size": 32}):
            with pytest.raises(UserError, match="augmentation is not in solo-learn 1.0.2"):
                host.fit_data(make(run_config, folder, [wrong | {"num_crops": 2}]))

    def test_with_dali_puts_the_mixin_first(solo_method, folder, trainer):
        from solo.methods import METHODS
        from solo.methods.dali import PretrainABC

        from solo_minent.host.wheel import with_dali

        transform = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "crop_size": 32}
        arguments = {
            "dali_device": "cuda" if torch.cuda.is_available() else "cpu",
            "unique_augs": 1,
            "transform_kwargs": transform,
            "num_crops_per_aug": [2],
            "num_workers": 1,
            "data_dir": folder,
            "train_dir": "train",
            "dataset": "custom",
            "no_labels": False,
            "encode_indexes_into_labels": False,
        }
        method = METHODS["vicreg"]
        METHODS["dali"] = with_dali(method)
        METHODS["old order"] = type("OldOrder", (method, PretrainABC), {})
        weights = {
            "proj_hidden_dim": 8,
            "proj_output_dim": 8,
            "sim_loss_weight": 1.0,
            "var_loss_weight": 1.0,
            "cov_loss_weight": 1.0,
        }
        try:
            fit = trainer(1)
            fit.fit(solo_method("dali", **weights, **arguments))
            assert fit.global_step == 2
            with pytest.raises(Exception, match="`train_dataloader` must be implemented"):
                trainer(1).fit(solo_method("old order", **weights, **arguments))
        finally:
            del METHODS["dali"], METHODS["old order"]


@pytest.mark.parametrize("kind", ["image_folder", "dali"])
def test_a_loader_to_be_measured_against(run_config, folder, kind):
    config = make(run_config, folder, [NO_CHANGE | {"num_crops": 2}], format=kind, num_workers=1)
    loader = own_loader(config)
    for _ in range(2):  # epochs
        batches = list(loader)
        assert [len(indexes) for indexes, _, _ in batches] == [8, 8]
        for _, views, labels in batches:
            assert [view.shape for view in views] == [(8, 3, 32, 32)] * 2
            green = pixels(views[0].cpu())[:, 1].mean(dim=(1, 2))
            torch.testing.assert_close(green, 100 + 50.0 * labels.cpu(), rtol=0, atol=1)


def test_cifar_is_read_and_never_downloaded(run_config, tmp_path, monkeypatch):
    """solo-learn 1.0.2 would download what is not there."""
    augmentations = [NO_CHANGE | {"num_crops": 2}]
    config = make(run_config, tmp_path, augmentations, dataset="cifar10")
    with pytest.raises(UserError, match=r"has no images.*looked for in cifar-10-batches-py/\*"):
        own_loader(config)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    batch.parent.mkdir()
    data = np.full((20, 3072), 51, np.uint8)
    batch.write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    _, views, labels = next(iter(own_loader(config)))
    assert len(views) == 2 and labels.max() < 10
    torch.testing.assert_close(pixels(views[0]), torch.full((8, 3, 32, 32), 51.0), atol=0.6, rtol=0)
