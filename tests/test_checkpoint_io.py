"""Checkpoints hold tensors and plain values: what needs pickle is neither written nor read."""

import argparse
import os
import pickle
import zipfile

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from solo_minent.checkpoint_io import CheckpointFiles, read_checkpoint, save_checkpoint
from solo_minent.errors import UserError

CONTENT = {"epoch": 3, "state_dict": {"x": torch.arange(12.0)}, "rows": [{"loss": 0.5}]}


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def load_as_lightning(path):
    return CheckpointFiles().load_checkpoint(path, weights_only=False)


READERS = pytest.mark.parametrize("read", [read_checkpoint, load_as_lightning])


@READERS
def test_round_trip(tmp_path, read):
    path = tmp_path / "run" / "last.ckpt"
    save_checkpoint(CONTENT, path)
    for found in (read(path), torch.load(path, weights_only=True)):
        assert found["epoch"] == 3 and found["rows"] == CONTENT["rows"]
        assert torch.equal(found["state_dict"]["x"], torch.arange(12.0))
    assert os.listdir(path.parent) == ["last.ckpt"]


@READERS
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path, read, form):
    path, mark = tmp_path / "last.ckpt", tmp_path / "mark"
    content = {**CONTENT, "hyper_parameters": Hostile(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=f"checkpoint is damaged: {path}") as caught:
        read(path)
    assert form != "zip" or "it needs pickle, for posix.system" in str(caught.value)
    assert not mark.exists()
    # The file would have done it.
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [np.float64(3), np.arange(3), argparse.Namespace(lr=1), torch.nn.Linear(2, 2), lambda: 1],
    ids=["scalar", "array", "namespace", "module", "lambda"],
)
def test_what_needs_pickle_is_not_saved(tmp_path, value):
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"checkpoint needs pickle: {path} would hold "):
        save_checkpoint({**CONTENT, "hyper_parameters": {"a": value}}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


@READERS
def test_every_damage_is_named(tmp_path, read):
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    spoilt = [b"", b"no checkpoint", b"PK\x03\x04", whole[1:]]
    spoilt += [whole[:size] for size in rng.integers(1, len(whole), 20)]
    for data in spoilt:
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"checkpoint is damaged: {path}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_no_flipped_bit_of_the_contents_goes_unseen(tmp_path):
    """Outside of the archive's records lie padding and dates, which carry nothing."""
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = [
            (whole.index(archive.read(entry)), entry.file_size)
            for entry in archive.infolist()
            if entry.filename.endswith(("data.pkl", "data/0"))
        ]
    assert len(places) == 2
    for start, size in places:
        for at in range(start, start + size, 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(UserError, match="is damaged: .*the checksum of .* is wrong"):
                read_checkpoint(path)


@pytest.mark.parametrize("content", [[1], {"epoch": 1}, {"state_dict": {}}, torch.ones(2)])
def test_another_file_of_pytorch_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match="it is no checkpoint of a training"):
        read_checkpoint(path)


def test_an_archive_that_unpacks_to_more_is_not_unpacked(tmp_path):
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match=r"checkpoint is damaged: .* \(it is packed\)"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=f"checkpoint is missing: {tmp_path / 'last.ckpt'}"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_the_old_checkpoint_stays_until_the_new_one_reads_back(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    before, sync = path.read_bytes(), os.fsync

    def sync_badly(descriptor):
        sync(descriptor)
        at = before.index(torch.arange(12.0).numpy().tobytes())
        os.pwrite(descriptor, b"X", at)

    monkeypatch.setattr(os, "fsync", sync_badly)
    with pytest.raises(UserError, match=f"checkpoint does not read back: {path} .*the checksum of"):
        save_checkpoint(CONTENT, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


class Model(pl.LightningModule):
    def __init__(self, note=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def fitted(folder, epochs=1, note=None, **fit):
    trainer = pl.Trainer(
        max_epochs=epochs,
        plugins=[CheckpointFiles()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model = Model(note)
    trainer.fit(model, DataLoader(torch.ones(4, 2), batch_size=2), **fit)
    return trainer, model


def test_lightning_saves_and_loads_through_it(tmp_path):
    path = tmp_path / "last.ckpt"
    trainer, model = fitted(tmp_path)
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert torch.equal(stored["state_dict"]["layer.weight"], model.layer.weight)
    resumed, _ = fitted(tmp_path, epochs=2, ckpt_path=path, weights_only=False)
    assert resumed.global_step == 4
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=f"checkpoint is damaged: {path}"):
        fitted(tmp_path, epochs=3, ckpt_path=path)


def test_an_object_in_the_hyper_parameters_is_refused_when_it_is_saved(tmp_path):
    trainer, _ = fitted(tmp_path, note=argparse.Namespace(lr=1))
    with pytest.raises(
        UserError, match=r"checkpoint needs pickle: .* would hold argparse\.Namespace"
    ):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []
