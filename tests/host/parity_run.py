"""Four steps of a ResNet-18 on whichever solo-learn is there: parity_run.py OPTIMIZER FILE."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from solo_minent import host
from solo_minent.methods.base import SSLMethod, mlp
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
        self.projector = mlp([self.features_dim, 16, 8])

    def ssl_loss(self, views, progress):
        return {"loss": (views.z[0] - views.teacher_z[1]).square().mean()}


def main() -> None:
    optimizer, path = sys.argv[1:]
    host.register(Pull)
    torch.manual_seed(0)
    backbone = resnet18()
    backbone.fc, backbone.num_features = nn.Identity(), 512
    kwargs = {} if optimizer == "adamw" else {"momentum": 0.9}
    lr = {"adamw": 1e-3, "sgd": 0.1, "lars": 1.0}[optimizer]
    config = RunConfig(
        method="pull",
        max_epochs=2,
        data=DataConfig(dataset="custom", image_size=32),
        optimizer=OptimizerConfig(
            optimizer, 8, lr, classifier_lr=lr, weight_decay=1e-3, kwargs=kwargs
        ),
        augmentations=[{"crop_size": 32, "num_crops": 2}],
    )
    module = host.build_method(config, backbone, lambda step: 1 / (1 + step), num_classes=3)
    images = torch.randn(16, 2, 3, 32, 32)
    data = [(i, list(images[i]), torch.tensor(i % 3)) for i in range(16)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(data, 8))
    state = {name.replace("encoder.", "backbone."): v for name, v in module.state_dict().items()}
    torch.save({"host": host.HOST, "steps": trainer.global_step, "state": state}, path)


if __name__ == "__main__":
    main()
