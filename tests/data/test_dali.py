"""The DALI loader on the CPU: PIL's views within stated grey levels, order, restart, bad files."""

from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from solo_minent.data import dali, epochs
from solo_minent.data.dali import DaliLoader
from solo_minent.data.images import ArrayImages, CorruptImageError
from solo_minent.data.loaders import pretrain_loader
from solo_minent.data.workers import calm
from solo_minent.errors import UserError
from solo_minent.schema import DaliConfig, DataConfig, OptimizerConfig, RunConfig

CROP = {"rrc": {"crop_min_scale": 0.2}, "horizontal_flip": {"prob": 0.5}}
JITTER = {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
FULL = {
    **CROP,
    "color_jitter": JITTER,
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.2},
}


def picture(number: int) -> Image.Image:
    """Coloured waves and a little noise; sizes and shapes differ from one to the next."""
    rng = np.random.default_rng(number)
    height, width = 40 + 5 * (number % 5), 64 - 7 * (number % 4)
    y, x = np.mgrid[:height, :width] / 10
    waves = rng.uniform(0.2, 1.5, (3, 3))
    pixels = [128 + 70 * np.sin(a * x + b * y + c) for a, b, c in waves]
    pixels = np.stack(pixels, axis=-1) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """26 JPEGs in two classes; 0.jpg … 12.jpg are the first."""
    root = tmp_path / "photos"
    for number in range(26):
        place = root / "train" / "ab"[number // 13]
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:02}.jpg", quality=92)
    return root


@pytest.fixture
def run(folder):
    """`run(entry, …, key=value)`: a run of 32 px views on these photographs."""

    def make(*entries, fmt="dali", batch_size=6, device="cpu", pipeline="own", late=None, **data):
        settings = {"root": str(folder), "image_size": 32, "num_workers": 1, "format": fmt, **data}
        return RunConfig(
            data=DataConfig(dataset="custom", **settings),
            dali=DaliConfig(device=device, pipeline=pipeline),
            augmentations=list(entries) or [FULL],
            late_epoch=None if late is None else late[0],
            late_augmentations=[] if late is None else list(late[1:]),
            optimizer=OptimizerConfig(batch_size=batch_size),
            seed=3,
        )

    return make


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for (index_a, views_a, target_a), (index_b, views_b, target_b) in zip(a, b, strict=True):
        assert torch.equal(index_a, index_b)
        assert torch.equal(target_a, target_b)
        assert all(torch.equal(x, y) for x, y in zip(views_a, views_b, strict=True))


def gray_levels(run, *entries, number=0):
    """|DALI - PIL| in grey levels of a whole epoch, (images, 3, S, S), one for each view."""
    batches = epoch(pretrain_loader(run(*entries)), number)
    by_pil = epoch(pretrain_loader(run(*entries, fmt="image_folder", num_workers=0)), number)
    std = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    differences = []
    for (index, views, target), (other, expected, label) in zip(batches, by_pil, strict=True):
        assert torch.equal(index, other)
        assert torch.equal(target, label)
        assert [v.shape for v in views] == [v.shape for v in expected]
        differences.append([(a - b).abs() * std for a, b in zip(views, expected, strict=True)])
    return [torch.cat(view) for view in zip(*differences, strict=True)]


# (operations, mean difference of the worst image, 99th percentile over all pixels), grey levels
OPERATIONS = {
    "resize": ({}, 0.5, 1.1),
    "crop": ({"rrc": CROP["rrc"]}, 0.5, 1.1),
    "bilinear crop": ({"rrc": {"interpolation": "bilinear"}}, 0.5, 1.1),
    "crop, flip": (CROP, 0.5, 1.1),
    "flip, crop": ({**CROP, "order": ["horizontal_flip", "rrc"]}, 0.5, 1.1),
    "resize, flip": ({"horizontal_flip": {"prob": 0.5}}, 0.5, 1.1),
    "brightness": ({"color_jitter": {"prob": 0.8, "brightness": 0.5}}, 0.6, 2.1),
    "contrast": ({"color_jitter": {"prob": 0.8, "contrast": 0.5}}, 0.8, 2.1),
    "saturation": ({"color_jitter": {"prob": 0.8, "saturation": 0.5}}, 0.8, 2.1),
    "hue": ({"color_jitter": {"prob": 0.8, "hue": 0.1}}, 1.2, 3.5),
    "any hue": ({"color_jitter": {"prob": 0.8, "hue": 0.5}}, 1.2, 3.5),
    "grayscale": ({"grayscale": {"prob": 0.5}}, 0.6, 1.1),
    "blur": ({"gaussian_blur": {"prob": 0.8}}, 1.2, 4.0),
    "narrow blur": ({"gaussian_blur": {"prob": 0.8, "radius": [0.1, 0.4]}}, 1.0, 3.0),
    "solarization": ({"solarization": {"prob": 0.5}}, 0.5, 2.1),
    "equalization": ({"crop_size": 96, "equalization": {"prob": 0.5}}, 4.0, 10.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pils(run, name):
    entry, image, pixel = OPERATIONS[name]
    (difference,) = gray_levels(run, entry)
    assert difference.mean((1, 2, 3)).max() < image
    assert np.percentile(difference, 99) < pixel


@pytest.mark.parametrize(
    "entry",
    [
        FULL,
        {key: FULL[key] for key in ("rrc", "horizontal_flip", "color_jitter", "grayscale")}
        | {"order": ["color_jitter", "grayscale", "rrc", "horizontal_flip"]},
        {**FULL, "equalization": {"prob": 0.0}, "rrc": {"enabled": False}},
        {"order": ["gaussian_blur", "solarization", "grayscale", "rrc", "color_jitter"]}
        | {key: FULL[key] for key in ("gaussian_blur", "solarization", "grayscale", "rrc")}
        | {"color_jitter": JITTER},
    ],
)
def test_a_whole_view_is_nearly_pils(run, entry):
    (difference,) = gray_levels(run, entry)
    # Jitter clips between its steps in another order than PIL's: single images differ more.
    assert difference.mean() < 1.5
    assert difference.mean((1, 2, 3)).max() < 8


def test_two_and_six_crops(run):
    small = {**FULL, "crop_size": 16, "num_crops": 6}
    large = {**FULL, "num_crops": 2}
    differences = gray_levels(run, large, small)
    assert [d.shape[-1] for d in differences] == [32, 32, *[16] * 6]
    assert max(d.mean() for d in differences) < 2
    views = next(iter(pretrain_loader(run(large, small))))[1]
    assert not torch.equal(views[0], views[1])


def test_batch_is_solo_learns(run):
    loader = pretrain_loader(run())
    assert isinstance(loader, DaliLoader)
    batches = epoch(loader, 0)
    assert len(loader) == len(batches) == 26 // 6
    index, views, targets = batches[0]
    assert (index.shape, index.dtype, targets.dtype) == ((6,), torch.int64, torch.int64)
    assert targets.tolist() == (index >= 13).long().tolist()
    assert (views[0].shape, views[0].dtype) == ((6, 3, 32, 32), torch.float32)
    assert len(set(torch.cat([b[0] for b in batches]).tolist())) == 24


def test_a_view_depends_on_seed_epoch_and_index_alone(run):
    loader = pretrain_loader(run())
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert not torch.equal(first[0][0], second[0][0])
    views = [
        dict(
            zip(torch.cat([b[0] for b in e]).tolist(), torch.cat([b[1][0] for b in e]), strict=True)
        )
        for e in (first, second)
    ]
    both = views[0].keys() & views[1].keys()
    assert sum(torch.equal(views[0][i], views[1][i]) for i in both) == 0
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_same(epoch(pretrain_loader(run()), 1), second)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(epoch(loader, 0), first)
    other = run()
    other.seed = 4
    assert not torch.equal(epoch(pretrain_loader(other), 0)[0][1][0], first[0][1][0])


def test_reading_processes_change_nothing(run, monkeypatch):
    expected = [epoch(pretrain_loader(run()), number) for number in (0, 1)]
    monkeypatch.setattr(dali, "_threads", lambda config, device: (1, 2))
    loader = pretrain_loader(run())
    for number in (0, 1):
        assert_same(epoch(loader, number), expected[number])


def test_resume_within_an_epoch(run):
    whole = pretrain_loader(run())
    expected, after = epoch(whole, 2), epoch(whole, 3)
    first = pretrain_loader(run())
    first.set_epoch(2)
    assert_same(list(itertools.islice(first, 2)), expected[:2])
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 2}
    second = pretrain_loader(run())
    second.load_state_dict(state)
    iterator = iter(second)
    second.sampler.set_epoch(2)  # as Lightning does, after it made the iterator
    assert_same(list(iterator), expected[2:])
    assert second.state_dict() == {"epoch": 2, "batches": 4}
    assert_same(epoch(second, 3), after)
    second.load_state_dict(second.state_dict())  # a whole epoch
    assert_same(epoch(second, 3), after)
    # A pass that was left early leaves nothing behind.
    assert_same(epoch(first, 2), expected)


def test_ranks_share_the_epoch(run, monkeypatch):
    single = epoch(pretrain_loader(run()), 1)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(epochs, "rank_and_world", lambda rank=rank: (rank, 2))
        ranks.append(epoch(pretrain_loader(run(batch_size=3)), 1))
    assert [len(batches) for batches in ranks] == [4, 4]
    for step, (indexes, views, _) in enumerate(single):
        for rank in range(2):
            share = slice(3 * rank, 3 * (rank + 1))
            assert torch.equal(ranks[rank][step][0], indexes[share])
            assert torch.equal(ranks[rank][step][1][0], views[0][share])


def test_late_augmentations_build_another_pipeline_and_ranges_do_not(run, monkeypatch):
    built = []
    build = dali.build_pipeline
    monkeypatch.setattr(dali, "build_pipeline", lambda *args: built.append(1) or build(*args))
    harder = {**FULL, "rrc": {"crop_min_scale": 0.05, "crop_max_scale": 0.14}}
    loader = pretrain_loader(run(FULL, late=(1, harder)))
    expected = pretrain_loader(run(harder))
    assert not torch.equal(epoch(loader, 0)[0][1][0], epoch(expected, 0)[0][1][0])
    assert_same(epoch(loader, 1), epoch(expected, 1))
    assert len(built) == 2  # one each
    more = {**harder, "num_crops": 2}
    loader = pretrain_loader(run(FULL, late=(1, more)))
    assert [len(epoch(loader, number)[0][1]) for number in (0, 1, 2, 0)] == [1, 2, 2, 1]
    assert len(built) == 5


def test_lightning_keeps_the_loader_and_resumes_within_the_epoch(run, tmp_path):
    from lightning import pytorch as pl

    class Recorder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen = []

        def training_step(self, batch, _):
            self.seen.append((self.current_epoch, batch[0].tolist(), batch[1][0].sum().item()))
            return self.weight * 0.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(checkpoint=None, **kwargs):
        model, loader = Recorder(), pretrain_loader(run())
        silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **silent, **kwargs
        )
        trainer.fit(model, loader, ckpt_path=checkpoint)
        assert trainer.train_dataloader is loader
        return model.seen

    save = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1, auto_insert_metric_name=False
    )
    whole = fit(callbacks=[save])
    assert [e for e, *_ in whole] == [0] * 4 + [1] * 4
    for step in (3, 6):
        assert fit(tmp_path / f"{step}.ckpt", enable_checkpointing=False) == whole[step:]


ODD = {
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "gray.jpg": lambda image, path: image.convert("L").save(path),
    "rgb.png": lambda image, path: image.save(path),
    "rgba.png": lambda image, path: image.convert("RGBA").save(path),
    "palette.png": lambda image, path: image.convert("P").save(path),
    "gray16.png": lambda image, path: image.convert("I;16").save(path),
    "photo.webp": lambda image, path: image.save(path),
    "turned.jpg": lambda image, path: image.save(path, exif=_turned()),
    "padded.jpg": lambda image, path: (image.save(path), path.open("ab").write(b"\0" * 100)),
}


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_every_kind_of_file_is_decoded_as_by_pil(run, folder):
    for number, (name, save) in enumerate(ODD.items()):
        (folder / "train" / "b" / f"{13 + number}.jpg").unlink()
        save(picture(number), folder / "train" / "b" / name)
    (difference,) = gray_levels(run, {})
    assert len(difference) == 24
    assert difference.max() < 4
    assert difference.mean((1, 2, 3)).max() < 0.5


def broken(folder, how):
    """Breaks the image of index 4 and returns it."""
    path = folder / "train" / "a" / "04.jpg"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "empty": b"", "text": b"no image" * 40}[how]
    )
    return path


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_corrupt_image_is_named(run, folder, how):
    path = broken(folder, how)
    loader = pretrain_loader(run())
    good = list(itertools.takewhile(lambda batch: True, _until_error(loader)))
    with pytest.raises(CorruptImageError, match=f"{path}.*on_corrupt=skip"):
        epoch(loader, 0)
    assert all(4 not in batch[0].tolist() for batch in good)
    # What comes before the corrupt image is handed out.
    order = list(loader.sampler)
    assert len(good) == order.index(4) // 6


def _until_error(loader):
    loader.set_epoch(0)
    try:
        yield from loader
    except CorruptImageError:
        return


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_corrupt_image_is_replaced_by_the_next_and_counted(run, folder, how):
    whole = epoch(pretrain_loader(run()), 0)
    broken(folder, how)
    loader = pretrain_loader(run(on_corrupt="skip"))
    batches = epoch(loader, 0)
    assert loader.readable.corrupt.nonzero().flatten().tolist() == [4]
    for (index, views, _), (expected, images, _) in zip(batches, whole, strict=True):
        keep = expected != 4
        assert torch.equal(index, torch.where(keep, expected, 5))
        assert torch.equal(views[0][keep], images[0][keep])
    assert_same(epoch(pretrain_loader(run(on_corrupt="skip")), 0), batches)


def test_what_dali_refuses_pil_decodes(run, folder, monkeypatch):
    # A file that gets past the check of its ends: DALI fails on the whole batch.
    expected = epoch(pretrain_loader(run()), 0)
    size = dali._plain_size
    webp = folder / "train" / "a" / "03.jpg"
    photo = Image.open(webp).convert("RGB")
    photo.save(webp, format="JPEG2000", irreversible=False)
    monkeypatch.setattr(dali, "_plain_size", lambda data: size(data) or Image.open(webp).size)
    refused = dali._decodes
    calls = []
    monkeypatch.setattr(dali, "_decodes", lambda file: calls.append(1) or refused(file))
    loader = pretrain_loader(run())
    for (index, views, _), (other, images, _) in zip(epoch(loader, 0), expected, strict=True):
        assert torch.equal(index, other)
        torch.testing.assert_close(views[0], images[0])


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_what_dali_and_pil_refuse_is_corrupt(run, folder, monkeypatch, skip):
    path = broken(folder, "text")
    size = dali._plain_size
    monkeypatch.setattr(dali, "_plain_size", lambda data: size(data) or (40, 40))
    loader = pretrain_loader(run(on_corrupt=skip))
    if skip == "error":
        for _ in range(2):  # the second pass starts from a sound pipeline
            with pytest.raises(CorruptImageError, match=str(path)):
                epoch(loader, 0)
        return
    indexes = torch.cat([batch[0] for batch in epoch(loader, 0)]).tolist()
    assert loader.readable.corrupt.nonzero().flatten().tolist() == [4]
    assert 4 not in indexes
    assert_same(epoch(loader, 1), epoch(pretrain_loader(run(on_corrupt="skip")), 1))


def test_refusals(run, monkeypatch):
    affine = {**CROP, "affine": {"degrees": 10}}
    with pytest.raises(UserError, match="DALI loader has no affine map.*image_folder"):
        pretrain_loader(run(affine))
    with pytest.raises(UserError, match="no affine map"):
        pretrain_loader(run(CROP, late=(3, affine)))
    with pytest.raises(UserError, match=r"dali\.pipeline=solo"):
        pretrain_loader(run(pipeline="solo"))
    pixels = ArrayImages(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9), ["a"])
    with pytest.raises(UserError, match="kept as pixels.*Set data.format=device"):
        DaliLoader(pixels, run())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no GPU for DALI.*dali\.device=cpu"):
        pretrain_loader(run(device="gpu"))
    assert pretrain_loader(run(device="auto")).device == "cpu"


def test_dali_is_missing(run, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("nvidia.dali"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="DALI is not installed.*pip install nvidia-dali-cuda130"):
        pretrain_loader(run())


@pytest.mark.parametrize("cores, workers", [(8, 2), (4, 0)])
def test_reading_processes_outlive_what_stops_the_run(run, monkeypatch, cores, workers):
    monkeypatch.setattr(dali, "cores_of_each", lambda processes: cores)
    reader = pretrain_loader(run(num_workers=8)).reader
    assert reader.num_workers == workers and reader.worker_init_fn is calm
