"""Epochs: the batch, the same batches for any worker count, restart and rank count."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DistributedSampler

from solo_minent.data import epochs
from solo_minent.data.epochs import EpochLoader
from solo_minent.data.loaders import pretrain_loader


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def assert_same(a, b):
    assert len(a) == len(b)
    for (index_a, views_a, target_a), (index_b, views_b, target_b) in zip(a, b, strict=True):
        assert torch.equal(index_a, index_b)
        assert torch.equal(target_a, target_b)
        assert all(torch.equal(x, y) for x, y in zip(views_a, views_b, strict=True))


def all_indices(batches):
    return torch.cat([batch[0] for batch in batches]).tolist()


def test_batch_is_solo_learns(digits_config):
    loader = pretrain_loader(digits_config())
    batches = epoch(loader, 0)
    assert len(loader) == len(batches) == 100 // 16
    index, views, targets = batches[0]
    assert isinstance(batches[0], list)
    assert isinstance(views, list)
    assert (index.shape, index.dtype) == ((16,), torch.int64)
    assert [v.shape for v in views] == [(16, 3, 16, 16)] * 2
    assert views[0].dtype == torch.float32
    assert targets.tolist() == loader.dataset.images.targets[index].tolist()
    assert not torch.equal(views[0], views[1])
    assert len(set(all_indices(batches))) == 96


def test_same_batches_for_any_worker_count_and_restart(digits_config):
    alone = pretrain_loader(digits_config(num_workers=0))
    workers = pretrain_loader(digits_config(num_workers=2))
    assert workers.num_workers >= 1
    expected = [epoch(alone, e) for e in range(3)]
    for e in range(3):  # persistent workers must see the epoch change
        assert_same(epoch(workers, e), expected[e])
    restarted = pretrain_loader(digits_config(num_workers=0))
    assert_same(epoch(restarted, 2), expected[2])
    assert all_indices(expected[0]) != all_indices(expected[1])
    # The same image gets new views in each epoch.
    assert not torch.equal(view_of(expected[0], 5), view_of(expected[1], 5))


def view_of(batches, image):
    for index, views, _ in batches:
        if image in index.tolist():
            return views[0][index.tolist().index(image)]
    return torch.empty(0)


def test_seed_decides_and_the_global_generator_does_not(digits_config):
    first = epoch(pretrain_loader(digits_config()), 0)
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    assert_same(epoch(pretrain_loader(digits_config()), 0), first)
    assert torch.equal(torch.get_rng_state(), state)
    other = digits_config()
    other.seed = 4
    assert all_indices(epoch(pretrain_loader(other), 0)) != all_indices(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_iterator_made_before_set_epoch_follows_the_epoch(digits_config, workers):
    # Lightning makes the iterator of a resumed run first and sets the sampler's epoch after.
    expected = epoch(pretrain_loader(digits_config()), 3)
    loader = pretrain_loader(digits_config(num_workers=workers))
    iterator = iter(loader)
    loader.sampler.set_epoch(3)
    assert_same(list(iterator), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_within_an_epoch(digits_config, workers):
    whole = pretrain_loader(digits_config())
    expected, after = epoch(whole, 2), epoch(whole, 3)
    first = pretrain_loader(digits_config(num_workers=workers))
    first.set_epoch(2)
    assert_same(list(itertools.islice(first, 4)), expected[:4])
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 4}
    second = pretrain_loader(digits_config(num_workers=workers))
    second.load_state_dict(state)
    second.set_epoch(2)
    assert len(second) == 6
    assert_same(list(second), expected[4:])
    assert second.state_dict() == {"epoch": 2, "batches": 6}
    assert_same(epoch(second, 3), after)


def test_a_finished_epoch_or_another_one_starts_anew(digits_config):
    loader = pretrain_loader(digits_config())
    expected = epoch(loader, 1)
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert_same(epoch(loader, 1), expected)
    loader.load_state_dict({"epoch": 7, "batches": 2})
    assert_same(epoch(loader, 1), expected)


@pytest.mark.parametrize("size", [96, 101])
@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_batches_one_after_the_other_are_the_global_batch(
    digits_config, monkeypatch, world, size
):
    single = epoch(pretrain_loader(digits_config(train_images=size)), 1)
    assert len(set(all_indices(single))) == 96
    config = digits_config(train_images=size)
    config.optimizer.batch_size = 16 // world
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(epochs, "rank_and_world", lambda rank=rank: (rank, world))
        loader = pretrain_loader(config)
        assert len(loader) == 6
        ranks.append(epoch(loader, 1))
        rest = pretrain_loader(config)  # a restart within the epoch
        rest.load_state_dict({"epoch": 1, "batches": 4})
        assert_same(epoch(rest, 1), ranks[-1][4:])
    together = []
    for step in zip(*ranks, strict=True):
        indexes, views, targets = zip(*step, strict=True)
        views = [torch.cat(view) for view in zip(*views, strict=True)]
        together.append([torch.cat(indexes), views, torch.cat(targets)])
    assert_same(together, single)


def test_images_that_fill_no_global_batch_are_left_out(digits_config, monkeypatch):
    # 2 x 16 images a step; 62 are one batch short of two steps.
    for size, steps in ((100, 3), (62, 1), (64, 2)):
        seen = []
        for rank in range(2):
            monkeypatch.setattr(epochs, "rank_and_world", lambda rank=rank: (rank, 2))
            batches = epoch(pretrain_loader(digits_config(train_images=size)), 0)
            assert len(batches) == steps
            seen += all_indices(batches)
        assert len(seen) == len(set(seen)) == steps * 32


@pytest.mark.parametrize("size", [96, 101])
def test_works_with_an_injected_distributed_sampler(digits_config, size):
    dataset = pretrain_loader(digits_config(train_images=size)).dataset
    passes = {}
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=0)
        loader = EpochLoader(dataset, batch_size=8, sampler=sampler, drop_last=True)
        for number in (0, 1):
            passes[rank, number] = epoch(loader, number)
    assert len(passes[0, 0]) == len(passes[1, 0]) == 6
    assert not set(all_indices(passes[0, 0])) & set(all_indices(passes[1, 0]))
    assert all_indices(passes[0, 0]) != all_indices(passes[0, 1])
    image = next(iter(set(all_indices(passes[0, 0])) & set(all_indices(passes[0, 1]))))
    assert not torch.equal(view_of(passes[0, 0], image), view_of(passes[0, 1], image))
    loader.load_state_dict({"epoch": 1, "batches": 2})
    assert_same(epoch(loader, 1), passes[1, 1][2:])


def test_lightning_keeps_the_sampler_and_resumes_within_the_epoch(digits_config, tmp_path):
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
        model = Recorder()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            max_epochs=3,
            **kwargs,
        )
        loader = pretrain_loader(digits_config(num_workers=1))
        trainer.fit(model, loader, ckpt_path=checkpoint)
        assert trainer.train_dataloader.sampler is loader.sampler
        return model

    save = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1, auto_insert_metric_name=False
    )
    whole = fit(callbacks=[save])
    assert len(whole.seen) == 18
    for step in (3, 9, 12):  # within the first epoch, within the second, at its end
        rest = fit(tmp_path / f"{step}.ckpt", enable_checkpointing=False)
        assert rest.seen == whole.seen[step:]
