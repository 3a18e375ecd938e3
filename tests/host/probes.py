"""One probe for each adaptation, run in a process of its own, with some adaptations left out.

    python probes.py FOLDER LEFT_OUT,… PROBE,…

FOLDER takes generated files. `all` leaves out, or runs, everything but the adaptations of the
import. Prints one JSON object: what was applied, and for each probe null or the error it met.
A probe depends on no other adaptation than its own.
"""

from __future__ import annotations

import json
import sys
import types
from argparse import Namespace
from importlib.machinery import ModuleSpec
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1])
IMPORT = {"pl_bolts", "distutils", "lightning_pytorch", "timm_registry"}

WHEEL = {
    "num_classes": 3,
    "backbone_args": {},
    "max_epochs": 3,
    "batch_size": 4,
    "optimizer": "sgd",
    "lars": False,
    "lr": 0.1,
    "weight_decay": 0.0,
    "classifier_lr": 0.1,
    "exclude_bias_n_norm": False,
    "accumulate_grad_batches": 1,
    "extra_optimizer_args": {},
    "scheduler": "none",
    "min_lr": 0.0,
    "warmup_start_lr": 0.0,
    "warmup_epochs": 1,
    "num_large_crops": 2,
    "num_small_crops": 0,
    "lr_decay_steps": [1],
}
SIMSIAM = {"proj_hidden_dim": 8, "proj_output_dim": 8, "pred_hidden_dim": 8, "temperature": 0.2}


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

    matplotlib.use("Agg")
    fake_module("umap", UMAP=UMAP)
    fake_module("seaborn", scatterplot=scatterplot, color_palette=lambda *_: None)
    fake_module("wandb")


def images(n: int = 10) -> Path:
    from PIL import Image

    for i in range(n):
        path = FOLDER / "train" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (20 * i, 100, 0)).save(path)
    return FOLDER / "train"


def wheel(name: str, **changes):
    from solo.methods import METHODS

    return METHODS[name](encoder="resnet18", **WHEEL | changes)


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


# Afterwards: the wheel.


def validation_epoch_end() -> None:
    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return i, [torch.full((3, 32, 32), float(i))] * 2, i

    module = wheel("base")
    labelled = TensorDataset(torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1]))
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    val = DataLoader(labelled, 4)
    trainer.fit(module, DataLoader(Batches(), 3), val)
    module.eval()
    images, labels = labelled.tensors
    with torch.no_grad():
        whole = nn.functional.cross_entropy(module(images)["logits"], labels)
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], whole)


def momentum_hook() -> None:
    module = wheel(
        "byol",
        base_tau_momentum=0.9,
        final_tau_momentum=1.0,
        momentum_classifier=True,
        proj_hidden_dim=8,
        proj_output_dim=8,
        pred_hidden_dim=8,
    )
    state = {"global_step": 1, "accumulate_grad_batches": 1, "max_epochs": 2}
    module._trainer = Namespace(train_dataloader=[0, 0], **state)
    module.log = lambda *_: None
    module.on_train_start()
    for p in module.encoder.parameters():
        p.data.add_(1)
    before = module.momentum_encoder.conv1.weight.clone()
    module.on_train_batch_end(None, None, 0)
    torch.testing.assert_close(module.momentum_encoder.conv1.weight, before + 0.1)


def dino_clip_gradients() -> None:
    module = wheel(
        "dino",
        base_tau_momentum=0.9,
        final_tau_momentum=1.0,
        momentum_classifier=False,
        proj_hidden_dim=8,
        proj_output_dim=8,
        num_prototypes=8,
        clip_grad=0.5,
        freeze_last_layer=1,
        use_bn_in_head=False,
        norm_last_layer=True,
        student_temperature=0.1,
        teacher_temperature=0.07,
        warmup_teacher_temperature=0.04,
        warmup_teacher_temperature_epochs=1,
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module.clip_gradients(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None)
    weight = module.encoder.conv1.weight
    weight.grad = torch.ones_like(weight)
    module.clip_gradients(0.5)
    torch.testing.assert_close(weight.grad.norm(), torch.tensor(0.5))


def lars_closure() -> None:
    module = wheel("base", lars=True, eta_lars=1e-12, lr=1.0)
    optimizer = module.configure_optimizers()
    before = module.encoder.conv1.weight.clone()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def closure():
        loss = module.encoder(images).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    moved = (module.encoder.conv1.weight - before).norm().item()
    assert moved < 1e-6, f"weights moved by {moved:.3g} with eta=1e-12"
    assert loss > 0
    assert module.encoder.conv1.weight.grad is not None


def checkpointer_on_every_rank() -> None:
    from solo.utils.checkpointer import Checkpointer

    class Rank:
        """A Trainer of one of two processes."""

        sanity_checking = False
        logger = Namespace(version="v")

        def __init__(self, rank: int) -> None:
            self.is_global_zero = rank == 0
            self.saved = []

        def save_checkpoint(self, path) -> None:
            self.saved.append(path.name)
            if self.is_global_zero:
                path.write_text("")

    for rank in (0, 1):
        trainer = Rank(rank)
        callback = Checkpointer(Namespace(name="run"), logdir=FOLDER / "checkpoints")
        callback.initial_setup(trainer)
        for epoch in (0, 1):
            trainer.current_epoch = epoch
            callback.save(trainer)
        names = ["run-v-ep=0.ckpt", "run-v-ep=1.ckpt"]
        assert trainer.saved == names, f"rank {rank} saved {trainer.saved}"
        assert [path.name for path in callback.path.glob("*.ckpt")] == names[1:]


def umap_val_dataloaders() -> None:
    from solo.utils.auto_umap import AutoUMAP

    class Features(nn.Linear):
        device = torch.device("cpu")

        def forward(self, x):
            return {"feats": super().forward(x)}

    loader = DataLoader(TensorDataset(torch.randn(6, 3), torch.arange(6) % 2), 4)
    logger = Namespace(version="v")
    callback = AutoUMAP(Namespace(name="run"), logdir=FOLDER / "umap")
    for loaders in (loader, [loader]):
        trainer = Namespace(
            val_dataloaders=loaders, is_global_zero=True, logger=logger, current_epoch=0
        )
        callback.initial_setup(trainer)
        callback.plot(trainer, Features(3, 4))
    assert (FOLDER / "umap" / "v" / "run-v-ep=0.pdf").stat().st_size > 0


def static_lr_state() -> None:
    for scheduler in ("cosine", "step", "warmup_cosine"):
        for lars in (False, True):
            module = wheel("simsiam", scheduler=scheduler, lars=lars, **SIMSIAM)
            _check_scheduler_state(module, module.configure_optimizers()[1][0])


def _check_scheduler_state(module, scheduler) -> None:
    torch.save(scheduler.state_dict(), FOLDER / "scheduler.pt")
    scheduler.load_state_dict(torch.load(FOLDER / "scheduler.pt", weights_only=True))
    scheduler.optimizer.step()
    scheduler.step()
    static = [g["lr"] for g in scheduler.optimizer.param_groups][-1]
    assert static == module.lr, "the predictor's rate moved"


def dali_on_cpu() -> None:
    from solo.utils.dali_dataloader import ImagenetTransform, NormalPipeline, PretrainPipeline

    path = images()
    transform = ImagenetTransform("cpu", 0.4, 0.4, 0.4, 0.1, crop_size=16)
    pretrain = PretrainPipeline(path, 4, "cpu", [transform], [2])
    for pipeline in (pretrain, NormalPipeline(path, 4, device="cpu")):
        pipeline.build()
        assert pipeline.device_id is None, f"device_id is {pipeline.device_id}"
    large, _, labels = pretrain.run()
    assert large.as_tensor().shape() == [4, 3, 16, 16]
    assert len(labels) == 4


# Both, or the source.


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
        _check_scheduler_state(module, made["scheduler"] if isinstance(made, dict) else made)


def default_strategy() -> None:
    from omegaconf import OmegaConf
    from solo.args import linear, pretrain

    for args in (pretrain, linear):
        for given, expected in (({}, "auto"), ({"strategy": "ddp"}, "ddp")):
            cfg = args.add_and_assert_lightning_cfg(OmegaConf.create(given))
            if cfg.strategy is None:
                pl.Trainer(strategy=cfg.strategy)
            assert cfg.strategy == expected


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
            globals().get(f"source_{name}" if source else name, globals()[name])()
            result[name] = None
        except Exception as error:
            result[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"applied": sorted(registry.APPLIED), "probes": result}))


if __name__ == "__main__":
    main()
