"""Every adaptation is needed (its probe meets the known error without it) and sufficient."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from solo_minent import host

PROBES = Path(__file__).with_name("probes.py")

# What the probe of an adaptation meets when it is left out.
COMMON = {
    "knn_update_only": "Unexpected keyword arguments: `compute_on_step`",
    "few_classes": "selected index k out of range",
    "dali_on_cpu": "device_id",
    "static_lr_state": "Weights only load failed|PicklingError",
}
AFTER_IMPORT = {
    "wheel": COMMON
    | {
        "validation_epoch_end": "Support for `validation_epoch_end` has been removed in v2.0.0",
        "momentum_hook": "missing 1 required positional argument: 'dataloader_idx'",
        "dino_clip_gradients": "unexpected keyword argument 'gradient_clip_val'",
        "lars_closure": "weights moved by .* with eta=1e-12",
        "checkpointer_on_every_rank": r"rank 1 saved \[\]",
        "umap_val_dataloaders": "'DataLoader' object is not subscriptable",
    },
    "source": COMMON | {"default_strategy": "invalid strategy"},
}[host.HOST]
# Left out together, in one process; then what each probe (or the import itself) meets.
IMPORTS = {
    "wheel": [
        (["pl_bolts"], {"import": "No module named 'pl_bolts'"}),
        (["distutils"], {"import": "distutils"}),
        (
            ["lightning_pytorch", "timm_registry"],
            {"lightning_pytorch": "another LightningModule", "timm_registry": "is registered"},
        ),
    ],
    "source": [
        (
            ["timm_registry"],
            {"timm_registry": "got multiple values for keyword argument 'pretrained'"},
        )
    ],
}[host.HOST]


def run_probes(folder: Path, left_out: str, probes: str) -> dict:
    command = [sys.executable, str(PROBES), str(folder), left_out, probes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def with_all(tmp_path_factory):
    return run_probes(tmp_path_factory.mktemp("with"), "", "all")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return run_probes(tmp_path_factory.mktemp("without"), "all", "all")


def test_every_adaptation_has_a_probe(with_all, without):
    import_time = {name for names, _ in IMPORTS for name in names}
    assert with_all["applied"] == sorted(AFTER_IMPORT.keys() | import_time)
    assert without["applied"] == sorted(import_time)


@pytest.mark.parametrize("name", sorted(AFTER_IMPORT))
def test_adaptation_is_needed_and_works(name, with_all, without):
    assert with_all["probes"][name] is None
    assert re.search(AFTER_IMPORT[name], without["probes"][name] or "it passed")


@pytest.mark.parametrize(("left_out", "expected"), IMPORTS, ids=lambda x: "+".join(x))
def test_import_adaptation_is_needed_and_works(left_out, expected, with_all, tmp_path):
    met = run_probes(tmp_path, ",".join(left_out), ",".join(left_out))["probes"]
    assert met.keys() == expected.keys()
    for name, message in expected.items():
        assert re.search(message, met[name] or "it passed")
    for name in left_out:
        assert with_all["probes"][name] is None
