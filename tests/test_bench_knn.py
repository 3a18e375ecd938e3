"""The comparison with solo-learn's kNN, small."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd


def test_both_sides_are_measured_and_agree(tmp_path):
    csv = tmp_path / "knn.csv"
    sizes = ["--train", "3000", "--test", "200", "--width", "16", "--rounds", "1", "--threads", "1"]
    command = [sys.executable, "-m", "solo_minent.bench_knn", *sizes, "--data", "clusters"]
    shown = subprocess.run([*command, "--csv", csv], check=True, capture_output=True, text=True)
    assert "solo-learn" in shown.stdout
    rows = pd.read_csv(csv)
    assert rows[["distance", "kNN"]].values.tolist() == [
        ["cosine", "solo-learn"],
        ["cosine", "solo_minent"],
        ["euclidean", "solo-learn"],
        ["euclidean", "solo_minent"],
    ]
    assert (rows["seconds"] > 0).all()
    # Euclidean votes differ: solo-learn weighs by 1 / distance.
    assert abs(rows["top-1"][0] - rows["top-1"][1]) <= 0.5
