"""Importing the plug-in is all that a user of solo-learn does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, warnings
import solo_minent
result = {"light": not {"torch", "solo", "lightning"} & sys.modules.keys()}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    solo_minent.register()
result["warnings"] = [
    str(w.message) for w in caught if issubclass(w.category, (FutureWarning, UserWarning))
]
import torch
import solo.methods
from solo_minent import methods
before = dict(solo.methods.METHODS)
solo_minent.register()
import solo_minent.plugin
result["registered"] = sorted(set(methods.available()) & before.keys())
result["available"] = sorted(methods.available())
result["idempotent"] = before == solo.methods.METHODS
result["cuda"] = torch.cuda.is_initialized()
stand_ins = ("pl_bolts", "distutils", "pytorch_lightning")
result["stand-ins"] = [
    name for name, module in sys.modules.items()
    if name.split(".")[0] in stand_ins and (module.__spec__ is None or "ning.p" in module.__name__)
]
import timm
timm.create_model("convnext_tiny")
result["version"] = solo_minent.__version__
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_is_light(result):
    assert result["light"]
    assert result["version"] == "0.1.0"


def test_every_method_is_registered_once(result):
    assert result["registered"] == result["available"]
    assert {"minent", "mec", "twist", "corinfomax"} <= set(result["registered"])
    assert result["idempotent"]


def test_nothing_is_left_behind(result):
    assert result["stand-ins"] == []
    assert result["cuda"] is False
    assert result["warnings"] == []
