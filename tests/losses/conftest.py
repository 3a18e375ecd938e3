"""Golden numbers of the official code, and the closed-form inputs they were taken on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden():
    """golden("mec") is tests/golden/mec.json."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def waves():
    """waves(n, d, t) has the float64 (n, d) tensors U, V, W, X3 of "input_definition"."""

    def make(n: int, d: int, t: int = 0) -> SimpleNamespace:
        i = torch.arange(n, dtype=torch.float64)[:, None]
        j = torch.arange(d, dtype=torch.float64)[None, :]
        return SimpleNamespace(
            U=torch.sin(0.37 * (i + 1) * (j + 1) + 0.9 * t),
            V=torch.cos(0.51 * (i + 1) * (j + 2) + 1 + 0.7 * t),
            W=torch.sin(0.29 * (i + 2) * (j + 1) + 2 + 0.5 * t),
            X3=torch.sin(0.37 * (i + 1) * (j + 1) * (i + j + 2) + 0.9 * t),
        )

    return make


@pytest.fixture(scope="session")
def leaf():
    """leaf(x, dtype) is a detached copy of x that collects a gradient."""
    return lambda x, dtype=torch.float64: x.detach().to(dtype).clone().requires_grad_()


@pytest.fixture(scope="session")
def close():
    """close(actual, expected, dtype): to 1e-9 relative in float64, 1e-5 in float32."""

    def check(actual, expected, dtype=torch.float64, what=""):
        rel = {torch.float64: 1e-9, torch.float32: 1e-5}[dtype]
        assert actual.item() == pytest.approx(expected, rel=rel, abs=0), what

    return check
