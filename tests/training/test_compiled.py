"""`compile: true`: the same run, of compiled networks."""

import pandas as pd
import pytest
import torch
from torch import nn

from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.errors import UserError
from solo_minent.pretrain import pretrain
from solo_minent.training import compiled

QUICK = ("evaluation.knn_every=0", "max_epochs=1", "data.train_images=96", "data.val_images=40")
# Adam would make a step of a gradient that is nothing but rounding: of a bias before a batch norm.
SGD = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.kwargs={momentum: 0.9}")
PARTS = {
    "minent": {"backbone", "projector"},
    "mec": {"backbone", "projector", "predictor", "teacher_backbone", "teacher_projector"},
    "twist": {"backbone", "projector"},
    "corinfomax": {"backbone", "projector"},
}


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without a compiler; of each graph that was made, what it is of."""
    made = []
    compile = torch.compile

    def compile_noting(function):
        def backend(graph, inputs):
            made.append(function.__code__.co_name)
            return graph.forward

        return compile(function, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_noting)
    yield made
    torch._dynamo.reset()


def weights(run_dir):
    return torch.load(run_dir / CHECKPOINT_FILE, weights_only=True)["state_dict"]


def assert_same_run(tiny_run, method):
    plain = pretrain(tiny_run(method, "name=plain", *QUICK, *SGD))
    other = pretrain(tiny_run(method, "name=compiled", "compile=true", *QUICK, *SGD))
    wanted, found = weights(plain), weights(other)
    assert list(found) == list(wanted)  # no _orig_mod in a name
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
    logs = [pd.read_csv(folder / "log.csv") for folder in (plain, other)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", PARTS)
def test_three_steps_are_those_of_the_uncompiled_run(tiny_run, graphs, method):
    assert_same_run(tiny_run, method)
    check, *parts = ["backbone" if name == "encoder" else name for name in graphs]
    assert check == "_sum"
    assert set(parts) == PARTS[method]
    # The backbone once more for images that are held out, nothing anew in each step.
    assert parts.count("backbone") == 2 and len(parts) == len(PARTS[method]) + 1


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", PARTS)
def test_three_steps_of_compiled_code(tiny_run, method):
    assert_same_run(tiny_run, method)


def test_a_run_goes_on_compiled_and_uncompiled(tiny_run, graphs):
    """From one checkpoint: its names are the same."""
    config = tiny_run("mec", "name=plain", *QUICK)
    folder = pretrain(config)
    further = tiny_run("mec", "name=further", "compile=true", *QUICK, "max_epochs=2")
    pretrain(further, resume_from=folder)
    assert len(pd.read_csv(further.run_dir / "log.csv")) == 2


def test_without_a_compiler_it_is_one_line_before_anything_starts(tiny_run, monkeypatch):
    def missing(function, **how):
        raise RuntimeError("Failed to find C++ compiler.\nTried g++")

    monkeypatch.setattr(torch, "compile", missing)
    config = tiny_run("mec", "compile=true", *QUICK)
    with pytest.raises(UserError, match=r"^nothing can be compiled .*: Failed to find C\+\+") as no:
        pretrain(config)
    assert "\n" not in str(no.value) and str(no.value).endswith("or set compile=false.")
    assert not config.run_dir.exists()


def test_what_has_no_weights_stays():
    module = nn.Module()
    module.backbone, module.classifier = nn.Linear(2, 2), nn.Linear(2, 2)
    module.criterion = nn.BatchNorm1d(2, affine=False)
    assert compiled.networks(module) == {"backbone": module.backbone}
