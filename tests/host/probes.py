"""One probe for each adaptation, run in a process of its own, with some adaptations left out.

    python probes.py FOLDER LEFT_OUT,… PROBE,…

FOLDER takes generated files. `all` leaves out, or runs, everything but the adaptations of the
import. Prints one JSON object: what was applied, and for each probe null or the error it met.
A probe depends on no other adaptation than its own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from importlib.machinery import ModuleSpec

import lightning.pytorch as pl
import torch
from probes_common import SIMSIAM, check_scheduler_state, images

torch.set_num_threads(1)


def fake_module(name: str, **content) -> None:
    """solo-learn's UMAP callback needs packages that a test machine does not have."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules.setdefault(name, module)


def fake_umap() -> None:
    class UMAP:
        def __init__(self, n_components: int) -> None:
            self.n_components = n_components

        def fit_transform(self, data):
            return data[:, : self.n_components]

    def scatterplot(**_):
        from matplotlib import pyplot

        (line,) = pyplot.plot([0, 1], label="class")
        return line.axes

    import matplotlib

    if importlib.util.find_spec("pandas") is None:
        fake_module("pandas", DataFrame=dict)
    matplotlib.use("Agg")
    fake_module("umap", UMAP=UMAP)
    fake_module("seaborn", scatterplot=scatterplot, color_palette=lambda *_: None)
    fake_module("wandb")


# The import.


def pl_bolts() -> None:
    from solo.methods import base

    assert base.LinearWarmupCosineAnnealingLR.__module__ == "solo_minent.host.schedulers"


def distutils() -> None:
    from solo.methods import dino

    strtobool = dino.distutils.util.strtobool
    assert (strtobool("True"), strtobool("no")) == (1, 0)


def lightning_pytorch() -> None:
    import solo.methods
    from solo.utils.checkpointer import Checkpointer

    assert issubclass(solo.methods.BaseMethod, pl.LightningModule), "another LightningModule"
    assert issubclass(Checkpointer, pl.Callback), "another Callback"


def timm_registry() -> None:
    import timm

    timm.create_model("convnext_tiny")
    assert not timm.is_model("vit_tiny"), "vit_tiny is registered"


# Afterwards: both hosts, or the source.


def knn_update_only() -> None:
    from solo.methods import base
    from solo.utils.knn import WeightedKNNClassifier

    assert base.WeightedKNNClassifier is WeightedKNNClassifier
    knn = WeightedKNNClassifier(k=1, distance_fx="euclidean")
    computed = []
    original = knn.compute
    knn.compute = lambda: computed.append(1) or original()
    points = torch.eye(4)
    assert knn(train_features=points, train_targets=torch.tensor([0, 1, 2, 0])) is None
    wrong = torch.tensor([0, 1, 2, 1])
    assert knn(test_features=points, test_targets=wrong) is None
    assert not computed, "forward computed"
    assert knn.compute()[0] == 75.0


def few_classes() -> None:
    from solo.methods import METHODS
    from solo.utils.metrics import accuracy_at_k

    outputs = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    acc1, acc5 = accuracy_at_k(outputs, torch.tensor([0, 2]), top_k=(1, 5))
    assert (acc1.item(), acc5.item()) == (50.0, 100.0)
    from solo.methods import base, linear

    assert METHODS["linear"] is linear.LinearModel
    assert base.accuracy_at_k is linear.accuracy_at_k is accuracy_at_k


def source_dali_on_cpu() -> None:
    from solo.data import dali_dataloader

    path = images()
    builder = dali_dataloader.PretrainPipelineBuilder(path, 4, "cpu", lambda x: [x])
    normal = dali_dataloader.NormalPipelineBuilder(path, 4, device="cpu")
    for made in (builder, normal):
        assert made.device_id is None, f"device_id is {made.device_id}"
        pipeline = made.pipeline(
            batch_size=4, num_threads=1, device_id=made.device_id, seed=made.seed
        )
        pipeline.build()
        assert len(pipeline.run()[-1]) == 4
    assert made.seed == 12


def source_static_lr_state() -> None:
    from omegaconf import OmegaConf
    from solo.methods import METHODS

    for scheduler in ("step", "warmup_cosine"):
        cfg = {
            "method": "simsiam",
            "backbone": {"name": "resnet18"},
            "method_kwargs": SIMSIAM,
            "data": {
                "dataset": "custom",
                "num_classes": 3,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "sgd",
                "batch_size": 4,
                "lr": 0.1,
                "classifier_lr": 0.1,
                "weight_decay": 0,
            },
            "scheduler": {
                "name": scheduler,
                "interval": "epoch",
                "warmup_epochs": 1,
                "lr_decay_steps": [1],
            },
            "max_epochs": 3,
        }
        module = METHODS["simsiam"](OmegaConf.create(cfg))
        made = module.configure_optimizers()[1][0]
        check_scheduler_state(module, made["scheduler"] if isinstance(made, dict) else made)


def default_strategy() -> None:
    from omegaconf import OmegaConf
    from solo.args import linear, pretrain

    for args in (pretrain, linear):
        for given, expected in (({}, "auto"), ({"strategy": "ddp"}, "ddp")):
            cfg = args.add_and_assert_lightning_cfg(OmegaConf.create(given))
            if cfg.strategy is None:
                pl.Trainer(strategy=cfg.strategy)
            assert cfg.strategy == expected


def find_probe(name: str, source: bool):
    if source:
        return globals().get(f"source_{name}") or globals()[name]
    import probes_wheel

    return getattr(probes_wheel, name, None) or globals()[name]


def main() -> None:
    _, _, left_out, probes = sys.argv
    from solo_minent import host
    from solo_minent.host import registry

    source = host.HOST == "source"
    names = {
        "wheel": ["pl_bolts", "distutils", "lightning_pytorch", "timm_registry"],
        "source": ["timm_registry"],
    }[host.HOST]
    after = ["knn_update_only", "dali_on_cpu", "static_lr_state", "few_classes"]
    after += (
        ["default_strategy"]
        if source
        else [
            "validation_epoch_end",
            "momentum_hook",
            "dino_clip_gradients",
            "lars_closure",
            "checkpointer_on_every_rank",
            "umap_val_dataloaders",
        ]
    )
    registry.LEFT_OUT.update(after if left_out == "all" else left_out.split(","))
    if "distutils" in left_out:
        sys.modules["distutils"] = None  # as on Python 3.12
    fake_umap()
    result = {}
    try:
        host.LinearConfig  # noqa: B018  (imports the host)
    except ImportError as error:
        result["import"] = f"{type(error).__name__}: {error}"
        probes = ""
    chosen = [*names, *after] if probes == "all" else probes.split(",") if probes else []
    for name in chosen:
        try:
            find_probe(name, source)()
            result[name] = None
        except Exception as error:
            result[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"applied": sorted(registry.APPLIED), "probes": result}))


if __name__ == "__main__":
    main()
