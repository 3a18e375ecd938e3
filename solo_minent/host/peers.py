"""Parts of solo-learn that ours are measured against."""

from __future__ import annotations

import importlib

from torchmetrics import Metric

from solo_minent import host


def knn_classifier(k: int, temperature: float, distance: str) -> Metric:
    """solo-learn's `WeightedKNNClassifier`; `update` takes features, `compute` gives accuracies."""
    # solo-learn is made importable first.
    importlib.import_module(f"solo_minent.host.{host.HOST}")
    from solo.utils.knn import WeightedKNNClassifier

    return WeightedKNNClassifier(k=k, T=temperature, distance_fx=distance)
