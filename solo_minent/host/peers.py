"""Parts of solo-learn that ours are measured against."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics import Metric

from solo_minent import host

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

# solo-learn's own CIFAR-10 recipes.
PEERS = {
    "barlow_twins": {"lamb": 0.0051, "scale_loss": 0.1},
    "vicreg": {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0},
}
PROJECTOR = {"proj_hidden_dim": 2048, "proj_output_dim": 2048}


def build_peer(
    name: str, config: RunConfig, backbone: nn.Module, num_classes: int
) -> LightningModule:
    """A method of solo-learn's with its hyper-parameters for CIFAR-10, on a backbone of ours.

    Args:
        name: one of `PEERS`.
        config: the run that gives optimiser (absolute rates), batch and views.
        backbone: images (B, 3, H, W) -> features (B, num_features), with `num_features`.
        num_classes: classes of the online classifier.
    """
    made_by = importlib.import_module(f"solo_minent.host.{host.HOST}")
    module = made_by.build_peer(name, config, backbone, num_classes, **PEERS[name], **PROJECTOR)
    # solo-learn's constructor made a ResNet-18 of its own, and these for it.
    module.features_dim = backbone.num_features
    module.classifier = nn.Linear(backbone.num_features, num_classes)
    module.projector[0] = nn.Linear(backbone.num_features, PROJECTOR["proj_hidden_dim"])
    return module


def knn_classifier(k: int, temperature: float, distance: str) -> Metric:
    """solo-learn's `WeightedKNNClassifier`; `update` takes features, `compute` gives accuracies."""
    # solo-learn is made importable first.
    importlib.import_module(f"solo_minent.host.{host.HOST}")
    from solo.utils.knn import WeightedKNNClassifier

    return WeightedKNNClassifier(k=k, T=temperature, distance_fx=distance)


def own_loader(config: RunConfig) -> Iterable:
    """solo-learn's training loader, PIL or DALI by `data.format`, of a folder of images or CIFAR.

    Batches are `[indexes (B,), [views (B, 3, S, S), …], targets (B,)]`.

    Args:
        config: with `data.mean` and `data.std`; `data.num_workers` is taken as it is.

    Raises:
        UserError: as `host.fit_data`.
    """
    data = host.fit_data(config)
    if "datamodule" not in data:
        # It asks for pinned memory on machines without an accelerator as well.
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true")
        return data["train_dataloaders"]
    module = data["datamodule"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a trainer that does not train
        module.trainer = Trainer(
            accelerator=config.accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
    module.setup("fit")
    return module.train_dataloader()
