"""A tiny method, a tiny backbone and generated images: what the host's tests share."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from solo_minent import host
from solo_minent.methods.base import Progress, SSLMethod, Views, mlp
from solo_minent.schema import DataConfig, OptimizerConfig, RunConfig, SchedulerConfig

torch.set_num_threads(1)


@dataclass
class TinyParams:
    dim: int = 4
    widths: list[int] = field(default_factory=lambda: [6])
    weight: float = 1.0
    flip: bool = False
    note: str | None = None
    base_momentum: float = 0.9
    final_momentum: float = 1.0


class Tiny(SSLMethod):
    """Pulls the student's views to the teacher's; remembers the progress that it was given."""

    name = "tiny"
    Params = TinyParams
    teacher = True
    multicrop = True

    def build(self, params: TinyParams) -> None:
        self.projector = mlp([self.features_dim, *params.widths, params.dim])
        self.seen: list[Progress] = []
        self.views_seen: list[int] = []

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, torch.Tensor]:
        self.seen.append(progress)
        self.views_seen.append(len(views.z))
        pull = sum((z - views.teacher_z[0]).square().mean() for z in views.z).double()
        return {"loss": self.params.weight * pull, "pull": pull}


class Plain(Tiny):
    """The same without a teacher."""

    name = "plain"
    teacher = False

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, torch.Tensor]:
        return {"loss": (views.z[0] - views.z[1]).square().mean()}


class Images(Dataset):
    """n images of 32 pixels in 3 classes, as solo-learn's batches: index, views, label."""

    def __init__(self, n: int, views: tuple[int, ...] = (32, 32)) -> None:
        self.n, self.views = n, views

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        views = [torch.randn(3, size, size, generator=generator) for size in self.views]
        return index, views, index % 3


class Labelled(Images):
    """The same for validation: image, label."""

    def __getitem__(self, index: int):
        _, views, label = super().__getitem__(index)
        return views[0], label


class Backbone(nn.Sequential):
    """Images to 8 features, with weights, a norm and buffers."""

    num_features = 8

    def __init__(self) -> None:
        conv = nn.Conv2d(3, 8, 3, stride=4, bias=False)
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(conv, nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Flatten())


@pytest.fixture
def tiny():
    host.register(Tiny)
    return Tiny


@pytest.fixture
def plain():
    host.register(Plain)
    return Plain


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone()


@pytest.fixture
def run_config(tmp_path):
    """Makes the configuration of a small run; keywords go to the part that has the key."""

    def make(method: str = "tiny", **changes) -> RunConfig:
        optimizer = {"name": "sgd", "lr": 0.1, "weight_decay": 0.01, "kwargs": {"momentum": 0.9}}
        parts = {
            "optimizer": (OptimizerConfig, optimizer | {"batch_size": 8, "classifier_lr": 0.05}),
            "scheduler": (SchedulerConfig, {}),
            "data": (DataConfig, {"dataset": "custom", "image_size": 32, "num_workers": 0}),
        }
        made = {}
        for name, (cls, defaults) in parts.items():
            made[name] = cls(**defaults | changes.pop(name, {}))
        config = {
            "max_epochs": 2,
            "output_dir": str(tmp_path),
            "augmentations": [{"crop_size": 32, "num_crops": 2}],
        }
        return RunConfig(method=method, **made, **config | changes)

    return make


@pytest.fixture
def loaders():
    """Training and validation batches of 8 images."""

    def make(n: int = 16, views: tuple[int, ...] = (32, 32)):
        return DataLoader(Images(n, views), 8), DataLoader(Labelled(n), 8)

    return make


@pytest.fixture
def trainer():
    """A quiet Trainer on the CPU."""

    def make(max_epochs: int = 2, **changes) -> Trainer:
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(max_epochs=max_epochs, accelerator="cpu", devices=1, **quiet | changes)

    return make


SOLO_KWARGS = {
    "vicreg": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "sim_loss_weight": 25.0,
        "var_loss_weight": 25.0,
        "cov_loss_weight": 1.0,
    },
    "barlow_twins": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "lamb": 0.005,
        "scale_loss": 0.1,
    },
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
    "simsiam": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "pred_hidden_dim": 16,
        "temperature": 0.2,
    },
}


@pytest.fixture
def solo_method():
    """Builds a method of solo-learn itself the way its users do, on whichever version is there."""

    def make(name: str, scheduler: str = "warmup_cosine", **kwargs):
        from solo_minent import plugin  # noqa: F401

        kwargs = SOLO_KWARGS.get(name, {}) | kwargs
        if host.HOST == "wheel":
            return _wheel_method(name, scheduler, kwargs)
        return _source_method(name, scheduler, kwargs)

    return make


def _wheel_method(name, scheduler, kwargs):
    from solo.methods import METHODS

    parser = METHODS[name].add_model_specific_args(ArgumentParser())
    arguments = ["--encoder=resnet18", "--optimizer=sgd", f"--scheduler={scheduler}", "--lr=0.1"]
    arguments += ["--batch_size=8", "--warmup_epochs=1"]
    args = vars(parser.parse_args(arguments)) | {
        "num_classes": 3,
        "backbone_args": {"cifar": False},
        "max_epochs": 3,
        "extra_optimizer_args": {"momentum": 0.9},
        "accumulate_grad_batches": 1,
        "num_large_crops": 2,
        "num_small_crops": 0,
        "lr_decay_steps": [1],
    }
    return METHODS[name](**args | kwargs)


def _source_method(name, scheduler, kwargs):
    from omegaconf import OmegaConf
    from solo.methods import METHODS

    cfg = {
        "name": name,
        "method": name,
        "backbone": {"name": "resnet18"},
        "method_kwargs": kwargs,
        "momentum": {"base_tau": 0.99, "final_tau": 1.0, "classifier": True},
        "data": {
            "dataset": "custom",
            "num_classes": 3,
            "num_large_crops": 2,
            "num_small_crops": 0,
        },
        "optimizer": {
            "name": "sgd",
            "batch_size": 8,
            "lr": 0.1,
            "classifier_lr": 0.1,
            "weight_decay": 1e-4,
            "kwargs": {"momentum": 0.9},
        },
        "scheduler": {"name": scheduler, "warmup_epochs": 1, "lr_decay_steps": [1]},
        "max_epochs": 3,
    }
    return METHODS[name](OmegaConf.create(cfg))
