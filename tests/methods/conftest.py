"""Methods without a host: mixed into a bare module with a tiny backbone."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from solo_minent.methods import Progress, available


@pytest.fixture(scope="session")
def golden():
    """golden("mec") is tests/golden/mec.json."""
    folder = Path(__file__).parents[1] / "golden"
    return lambda name: json.loads((folder / f"{name}.json").read_text())


@pytest.fixture
def make_method():
    """Builds a method by name: `make_method("mec", output_dim=8)`."""

    def make(name, *, num_large_crops=2, features_dim=6, **params):
        method = available()[name]

        class Bare(method, nn.Module):
            def __init__(self):
                nn.Module.__init__(self)
                self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, features_dim))
                self.features_dim, self.num_classes = features_dim, 3
                self.num_large_crops = num_large_crops
                self.setup_method(method.Params(**params))

        torch.manual_seed(0)
        return Bare()

    return make


@pytest.fixture
def step():
    """One step of a bare method on random views: the terms of its loss."""

    def run(method, *, batch=8, small=0, progress=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        crops = [
            torch.randn(batch, 3, 2, 2, generator=generator)
            for _ in range(method.num_large_crops + small)
        ]
        feats = [method.backbone(crop) for crop in crops]
        return method.ssl_step(crops, feats, progress or Progress(0, 100, 0, 10))

    return run
