"""What is evaluated, on which device, and what is refused before it starts."""

import pytest
import torch

from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.evaluation import targets


@pytest.mark.parametrize(
    ("accelerator", "cuda", "device"),
    [
        ("cpu", True, "cpu"),
        ("auto", True, "cuda"),
        ("gpu", True, "cuda"),
        ("gpu", False, "cpu"),
        ("auto", False, "cpu"),
    ],
)
def test_features_are_computed_where_the_run_says(accelerator, cuda, device, monkeypatch):
    used = []

    def extract(backbone, loader, device, progress):
        used.append(device)
        return torch.zeros(1, 1), torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(targets, "extract_features", extract)
    config = load_recipe("digits/mec", [f"accelerator={accelerator}"])
    target = targets.load_target(config, "pixels")
    targets.features_of(target, config, loaders=(None, None))
    assert used == [device, device]


def test_neighbours_are_at_most_the_training_images():
    config = load_recipe("digits/mec", ["evaluation.knn_k=7"])
    targets.check_knn_k(config, 7)
    with pytest.raises(UserError, match="evaluation.knn_k is out of range: 7.*at most 3. Set .*=3"):
        targets.check_knn_k(config, 3)
    with pytest.raises(UserError, match="--k is out of range: 7"):
        targets.check_knn_k(config, 6, "--k")
