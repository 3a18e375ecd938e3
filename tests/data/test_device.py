"""The device loader: batches, order, restart, what it refuses."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from solo_minent.console import quiet_lightning
from solo_minent.data import device, epochs
from solo_minent.data.device import DeviceLoader
from solo_minent.data.images import CorruptImageError
from solo_minent.data.loaders import pretrain_loader
from solo_minent.errors import UserError
from solo_minent.schema import DataConfig, OptimizerConfig, RunConfig


@pytest.fixture
def config(digits_config):
    """Builds a run of 100 digits on the CPU, 16 a batch."""

    def build(**data):
        run = digits_config(format="device", **data)
        run.accelerator = "cpu"
        return run

    return build


@pytest.fixture
def folder_run(tmp_path):
    """Builds a run of 12 PNG files, of the given sizes; `broken` are cut short."""

    def build(sizes=((20, 16),) * 12, broken=(), **data):
        for i, size in enumerate(sizes):
            path = tmp_path / "set" / "train" / "cat" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (20 * i, 0, 255 - i)).save(path)
            if i in broken:
                path.write_bytes(path.read_bytes()[:40])
        settings = {"dataset": "custom", "root": str(tmp_path / "set"), "image_size": 16, **data}
        return RunConfig(
            data=DataConfig(format="device", **settings),
            augmentations=[{"rrc": {"enabled": True}, "crop_size": 16, "num_crops": 2}],
            optimizer=OptimizerConfig(batch_size=6),
            accelerator="cpu",
        )

    return build


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def assert_same(a, b):
    for (index_a, views_a, target_a), (index_b, views_b, target_b) in zip(a, b, strict=True):
        assert torch.equal(index_a, index_b)
        assert torch.equal(target_a, target_b)
        assert all(map(torch.equal, views_a, views_b))


def indexes(batches):
    return [batch[0].tolist() for batch in batches]


def test_batch_is_solo_learns_and_no_process_makes_it(config):
    others = set(multiprocessing.active_children())  # of loaders that were not collected yet
    loader = pretrain_loader(config(num_workers=2))
    assert isinstance(loader, DeviceLoader)
    batches = epoch(loader, 0)
    assert set(multiprocessing.active_children()) <= others
    assert len(loader) == len(batches) == 100 // 16
    index, views, targets = batches[0]
    assert (index.shape, index.dtype) == ((16,), torch.int64)
    assert [view.shape for view in views] == [(16, 3, 16, 16)] * 2
    assert views[0].dtype == torch.float32
    assert not views[0].is_inference()  # the backward pass keeps it
    assert not torch.equal(*views)
    assert targets.tolist() == loader.readable.images.targets[index].tolist()
    assert len({i for batch in indexes(batches) for i in batch}) == 96


def test_order_is_that_of_the_other_loaders(config, digits_config):
    other = pretrain_loader(digits_config())
    assert indexes(epoch(pretrain_loader(config()), 3)) == indexes(epoch(other, 3))


def test_batches_follow_seed_and_epoch_and_nothing_else(config):
    loader = pretrain_loader(config())
    first = epoch(loader, 1)
    assert_same(epoch(loader, 1), first)
    assert indexes(epoch(loader, 2)) != indexes(first)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_same(epoch(pretrain_loader(config()), 1), first)
    assert torch.equal(torch.get_rng_state(), state)
    other = config()
    other.seed = 4
    assert indexes(epoch(pretrain_loader(other), 1)) != indexes(first)


def test_resume_within_an_epoch(config):
    whole = pretrain_loader(config())
    expected, after = epoch(whole, 2), epoch(whole, 3)
    first = pretrain_loader(config())
    first.set_epoch(2)
    assert_same(itertools.islice(first, 4), expected[:4])
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 4}
    second = pretrain_loader(config())
    second.load_state_dict(state)
    second.set_epoch(2)
    assert_same(second, expected[4:])
    assert second.state_dict() == {"epoch": 2, "batches": 6}
    assert_same(epoch(second, 3), after)
    second.load_state_dict({"epoch": 2, "batches": 6})  # a whole one
    assert_same(epoch(second, 2), expected)
    second.load_state_dict({"epoch": 9, "batches": 2})  # another one
    assert_same(epoch(second, 2), expected)


def test_ranks_share_the_epoch(config, monkeypatch):
    single = indexes(epoch(pretrain_loader(config()), 1))
    half = config()
    half.optimizer.batch_size = 8
    parts = []
    for rank in range(2):
        for module in (epochs, device):
            monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(epoch(pretrain_loader(half), 1))
    together = [a + b for a, b in zip(*map(indexes, parts), strict=True)]
    assert together == single
    # Each rank has draws of its own: same seed and step, but no affine angle in common.
    monkeypatch.setattr(epochs, "rank_and_world", lambda: (0, 2))
    ours = epoch(pretrain_loader(half), 1)  # the images of rank 0 with the draws of rank 1
    assert indexes(ours) == indexes(parts[0])
    assert not torch.equal(ours[0][1][0], parts[0][0][1][0])


def test_late_augmentations(config):
    run = config()
    run.late_epoch = 2
    run.late_augmentations = [
        {"crop_size": 16, "num_crops": 2},
        {"rrc": {"enabled": True}, "crop_size": 8, "num_crops": 3},
    ]
    loader = pretrain_loader(run)
    shapes = [[view.shape[-1] for view in epoch(loader, e)[0][1]] for e in (1, 2)]
    assert shapes == [[16, 16], [16, 16, 8, 8, 8]]


class Recorder(pl.LightningModule):
    """Remembers what Lightning hands it, and saves after nine steps."""

    def __init__(self, checkpoint):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.checkpoint = [], checkpoint

    def training_step(self, batch, index):
        self.seen.append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def on_train_batch_end(self, *_):
        if self.trainer.global_step == 9:
            self.trainer.save_checkpoint(self.checkpoint)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(loader, folder, ckpt_path=None):
    module = Recorder(folder / "middle.ckpt")
    with quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    assert trainer.train_dataloader is loader  # neither wrapped nor copied
    return module.seen, trainer


def test_lightning_sets_the_epoch_and_resumes_in_the_middle(config, tmp_path):
    expected = [*epoch(pretrain_loader(config()), 0), *epoch(pretrain_loader(config()), 1)]
    seen, trainer = fit(pretrain_loader(config()), tmp_path)
    assert_same(seen, expected)
    rest, _ = fit(pretrain_loader(config()), tmp_path, tmp_path / "middle.ckpt")
    assert_same(rest, expected[9:])
    pixels = pretrain_loader(config()).pixels
    assert trainer.strategy.batch_to_device([pixels])[0] is pixels  # nothing to transfer


def test_folder_is_decoded_once(folder_run, tmp_path):
    loader = pretrain_loader(folder_run())
    assert loader.pixels.shape == (12, 3, 16, 20)
    assert loader.pixels.dtype == torch.uint8
    expected = np.array(Image.open(tmp_path / "set/train/cat/03.png")).transpose(2, 0, 1)
    assert np.array_equal(loader.pixels[3], expected)
    for path in Path(tmp_path / "set/train/cat").iterdir():
        path.unlink()
    assert sorted(sum(indexes(epoch(loader, 0)), [])) == list(range(12))


def test_corrupt_image_is_named_or_replaced(folder_run):
    with pytest.raises(CorruptImageError, match=r"cannot read an image: .*04\.png"):
        pretrain_loader(folder_run(broken=[4]))
    loader = pretrain_loader(folder_run(broken=[0, 4, 11], on_corrupt="skip"))
    assert loader.readable.corrupt.nonzero()[:, 0].tolist() == [0, 4, 11]
    assert loader.indexes.tolist() == [1, 1, 2, 3, 5, 5, 6, 7, 8, 9, 10, 1]
    assert torch.equal(loader.pixels[4], loader.pixels[5])
    with pytest.raises(UserError, match="no image can be decoded: 12 images"):
        pretrain_loader(folder_run(broken=range(12), on_corrupt="skip"))


def test_images_of_two_sizes_are_refused(folder_run):
    sizes = [(20, 16)] * 7 + [(16, 20)] + [(20, 16)] * 4
    message = r"images differ in size: .*00\.png is 20 x 16, .*07\.png is 16 x 20\. .*format=dali"
    with pytest.raises(UserError, match=message):
        pretrain_loader(folder_run(sizes))


def test_what_does_not_fit_is_refused_before_it_is_decoded(folder_run, monkeypatch):
    run, opened = folder_run(), []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **kw: opened.append(1) or original(*a, **kw))
    need = 12 * 3 * 20 * 16
    monkeypatch.setattr(device, "_free_ram", lambda: 2 * need - 1)
    message = (
        r"too large for data.format=device: 12 images of 20 x 16 need 1\.07e-05 GiB of RAM\. "
        r"At most half of the 2\.15e-05 GiB that are free.* data\.format=image_folder, .*dali"
    )
    with pytest.raises(UserError, match=message):
        pretrain_loader(run)
    assert len(opened) == 1
    monkeypatch.setattr(device, "_free_ram", lambda: 2 * need)
    pretrain_loader(run)
    run.devices = 2  # each process holds a set
    with pytest.raises(UserError, match="too large"):
        DeviceLoader(pretrain_loader(folder_run()).readable.images, run)


def test_gpu_memory_counts_where_there_is_one(folder_run, monkeypatch):
    run = folder_run()
    run.accelerator = "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80 * 2**30))
    with pytest.raises(UserError, match=r"need 1\.07e-05 GiB of GPU memory"):
        pretrain_loader(run)


def test_free_memory_is_real():
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    assert 2**24 < device._free_ram() <= total
