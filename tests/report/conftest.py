"""Run folders as finished runs leave them, made without training."""

import json
from dataclasses import replace

import pytest

from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import BACKBONE_FILE, save_backbone
from solo_minent.config import to_yaml
from solo_minent.files import sha256, write_json, write_text

TERMS = {"minent": "target_entropy", "mec": "coding_length", "twist": "sharpness"}


def log_of(method, epochs=6):
    columns = f"epoch,lr,train_{method}_loss,train_{method}_{TERMS[method]},val_acc1,knn_acc1"
    lines = [f"{columns},monitor_effective_rank", "0,,,,,21.5,"]
    for e in range(1, epochs + 1):
        knn = f"{40 + 8 * e}" if e % 2 == 0 else ""
        lines.append(f"{e},{0.001 * e},{5 / e},{0.9 - 0.1 / e},{30 + 9 * e},{knn},{3 + e}")
    return "\n".join(lines) + "\n"


def result(
    evaluation="knn",
    protocol="5-NN, euclidean, majority vote",
    target="trained",
    top1=91.25,
    metrics=None,
    **values,
):
    """One result in the order in which they are stored."""
    return {
        "target": target,
        "evaluation": evaluation,
        "protocol": protocol,
        **(metrics or {"top1": top1}),
        "dataset": "digits",
        "train_images": 1438,
        "test_images": 359,
        "seed": 0,
        "weights": "somewhere/backbone.safetensors: loaded 62/62 tensors",
        "checkpoint_sha256": None,
        "date": "2026-01-31",
        "versions": {"solo_minent": "0.1.0", "torch": "2.11.0"},
        **values,
    }


@pytest.fixture
def make_result():
    return result


@pytest.fixture
def make_run(tiny_run):
    """`make_run("mec", "name=b", results=[…], log="…")`: the configuration of a finished run.

    The checkpoint of a result is `True`: that of the folder.
    """

    def make(method="twist", *overrides, results=(), log=None):
        config = tiny_run(method, "evaluation.linear.max_epochs=2", *overrides)
        folder = config.run_dir
        backbone = build_backbone(config.backbone.name, "small", **config.backbone.kwargs)
        save_backbone(folder / BACKBONE_FILE, backbone.state_dict(), config)
        digest = sha256(folder / BACKBONE_FILE)
        write_text(folder / "config.yaml", to_yaml(config))
        write_text(folder / "log.csv", log or log_of(method))
        if results:
            stored = [
                {**r, "checkpoint_sha256": digest} if r["checkpoint_sha256"] is True else r
                for r in results
            ]
            write_json(folder / "results.json", stored)
        environment = {"solo_minent": "0.1.0", "python": "3.11", "packages": {"torch": "2.11.0"}}
        write_text(folder / "environment.json", json.dumps([environment]))
        return replace(config, folder=str(folder))

    return make


@pytest.fixture(autouse=True)
def plain_projection(monkeypatch):
    """PCA, whatever is installed: UMAP compiles for many seconds and has tests of its own."""
    monkeypatch.setattr("solo_minent.report.examples.umap_installed", lambda: False)
