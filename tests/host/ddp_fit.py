"""Two processes on the CPU fit an adapted method with solo-learn's checkpointer: ddp_fit.py DIR."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from solo_minent import host
from solo_minent.methods.base import SSLMethod
from solo_minent.schema import DataConfig, OptimizerConfig, RunConfig

torch.set_num_threads(1)


@dataclass
class Params:
    base_momentum: float = 0.9
    final_momentum: float = 1.0


class Pull(SSLMethod):
    name = "pull"
    Params = Params
    teacher = True

    def build(self, params):
        self.projector = nn.Linear(self.features_dim, 4)

    def ssl_loss(self, views, progress):
        return {"loss": (views.z[0] - views.teacher_z[1]).square().mean()}


def main() -> None:
    host.register(Pull)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    backbone.num_features = 6
    config = RunConfig(
        method="pull",
        max_epochs=2,
        output_dir=sys.argv[1],
        data=DataConfig(dataset="custom", image_size=2),
        optimizer=OptimizerConfig("sgd", 4, 0.1, classifier_lr=0.1),
        augmentations=[{"crop_size": 2, "num_crops": 2}],
    )
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=3, online_knn=1)
    images, labels = torch.randn(16, 3, 2, 2), torch.arange(16) % 3
    data = [(i, [images[i], images[i] + 0.1], labels[i]) for i in range(16)]
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=host.callbacks(config),
    )
    trainer.fit(module, DataLoader(data, 4), DataLoader(TensorDataset(images, labels), 4))
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    path = Path(sys.argv[1]) / f"rank{trainer.global_rank}.json"
    path.write_text(json.dumps({"steps": trainer.global_step, **metrics}))


if __name__ == "__main__":
    main()
