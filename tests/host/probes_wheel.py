"""Probes of the adaptations of solo-learn 1.0.2; see probes.py."""

from __future__ import annotations

from argparse import Namespace

import lightning.pytorch as pl
import torch
from probes_common import FOLDER, SIMSIAM, check_scheduler_state, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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


def wheel(name: str, **changes):
    from solo.methods import METHODS

    return METHODS[name](encoder="resnet18", **WHEEL | changes)


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
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
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
    images = torch.randn(4, 3, 32, 32)

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
            check_scheduler_state(module, module.configure_optimizers()[1][0])


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
