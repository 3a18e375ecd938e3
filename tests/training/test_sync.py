"""A training step waits for no device: it reads nothing back that it has computed.

On the CPU nothing has to be waited for, but the same calls are made, and the profiler sees them.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.overrides import TorchFunctionMode, resolve_name
from torch.profiler import ProfilerActivity, profile

import solo_minent.pretrain
from solo_minent.config import to_yaml
from solo_minent.losses import corinfomax
from solo_minent.methods import available
from solo_minent.pretrain import pretrain

METHODS = ("minent", "mec", "twist", "corinfomax")
QUICK = ("evaluation.knn_every=0", "max_epochs=1", "data.val_images=40")
# Operations that end with a number, or with a shape that is a number, in the process.
READS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "_linalg_check_errors",
        "_unique2",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
    )
}
OF_THE_CPU = {"aten::_fused_adam_", "aten::_fused_adamw_", "aten::cholesky_inverse"}
# What the profiler of a CPU does not show: reading its memory, and copies that are waited for. Not
# `numpy`, which no tensor of another device has.
CALLS = {"tolist", "cpu", "new_tensor"}
COPIES = (torch.tensor, torch.as_tensor)


class Calls(TorchFunctionMode):
    """Notes calls that read a tensor, or that wait for a copy to the device."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in CALLS or (function in COPIES and kwargs.get("device") is not None):
            self.made.append(resolve_name(function) or name)
        return function(*args, **kwargs)


class Watch(Callback):
    """Of the third step: what it read. First of all callbacks to begin, last of all to end."""

    def __init__(self):
        self.reads = None

    def begin(self, trainer):
        if trainer.global_step == 2 and self.reads is None:
            self.calls = Calls()
            self.profile = profile(activities=[ProfilerActivity.CPU])
            self.profile.__enter__()
            self.calls.__enter__()

    def end(self, trainer):
        if trainer.global_step == 3 and self.reads is None:
            self.calls.__exit__(None, None, None)
            self.profile.__exit__(None, None, None)
            self.reads = [*self.calls.made, *filter(None, map(read, self.profile.events()))]


def read(event):
    """What a profiled operation is called if it reads; None of others.

    A fused Adam counts its steps on its device; its kernel of the CPU reads them there. CorInfoMax
    takes another way to an inverse on a GPU, see below.
    """
    if event.name not in READS:
        return None
    above, names = event.cpu_parent, [event.name]
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    return None if OF_THE_CPU & set(names) else " in ".join(names)


def test_the_inverse_of_a_gpu_reads_nothing():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 16, 64, dtype=torch.float64, generator=generator)
    factors = torch.linalg.cholesky(a @ a.mT)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = corinfomax._inverse_by_solving(factors)
    torch.testing.assert_close(found, torch.cholesky_inverse(factors), rtol=1e-12, atol=1e-15)
    assert not READS & {event.name for event in profiled.events()}


@pytest.fixture
def reads(tiny_run, monkeypatch):
    """`reads("mec", "optimizer.name=lars")`: what a step in the middle of a run read."""

    count = itertools.count()

    def of(method, *overrides):
        watch = Watch()
        first, last = Callback(), Callback()
        first.on_train_batch_start = lambda trainer, *_: watch.begin(trainer)
        last.on_train_batch_end = lambda trainer, *_: watch.end(trainer)
        make = solo_minent.pretrain.make_trainer
        with monkeypatch.context() as patch:
            patch.setattr(
                solo_minent.pretrain,
                "make_trainer",
                lambda config, accelerator, callbacks, *rest: make(
                    config, accelerator, [first, *callbacks, last], *rest
                ),
            )
            counted = next(count)
            pretrain(tiny_run(method, *QUICK, f"name=run-{counted}", *overrides))
        return watch.reads

    return of


@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_nothing(reads, method):
    assert reads(method) == []


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
def test_no_optimizer_reads(reads, optimizer):
    clip = ["gradient_clip_val=1.0", "optimizer.weight_decay=0.1"]
    assert reads("mec", f"optimizer.name={optimizer}", *clip) == []


def test_a_read_is_found(reads, monkeypatch):
    """Of a loss, by the process or by numpy, and of a shape that depends on values."""
    method = available()["mec"]
    original = method.ssl_loss
    for name, wrong in {
        "aten::_local_scalar_dense": lambda loss: loss.item(),
        "aten::is_nonzero": lambda loss: bool(loss > 0),
        "aten::nonzero": lambda loss: loss.reshape(1)[loss.reshape(1) > 0],
        "torch.Tensor.tolist": lambda loss: loss.tolist(),
        "torch.Tensor.cpu": lambda loss: loss.cpu(),
        "torch.tensor": lambda loss: torch.tensor([1.0], device=loss.device),
    }.items():

        def ssl_loss(self, views, progress, wrong=wrong):
            terms = original(self, views, progress)
            wrong(terms["loss"])
            return terms

        with monkeypatch.context() as patch:
            patch.setattr(method, "ssl_loss", ssl_loss)
            assert any(name in found for found in reads("mec")), name


def test_a_step_that_may_be_passed_over_is_read_once(reads):
    """`guard.skip` needs the answer within the step: one read, from memory that is sent there."""
    assert reads("mec", "guard.skip=1") == []


def test_ranks_talk_once_about_a_step(tiny_run, tmp_path):
    """Beside the losses' own and DDP's: the guard's flags and, on the CPU, who is told to stop."""
    config = tiny_run("mec", "devices=2", "optimizer.batch_size=16", *QUICK)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    script = Path(__file__).with_name("sync_ranks.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(recipe), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("".join(filter(None, process.communicate())))
    assert process.returncode == 0, output
    for rank in (0, 1):
        calls = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        own = {"losses/mec.py", "methods/mec.py", "batchnorm.py", "backward"}
        assert {"losses/mec.py", "batchnorm.py"} <= {who for _, who in calls}
        assert sorted(call for call in calls if call[1] not in own) == [
            ["all_reduce", "training/guard.py"],
            ["all_reduce", "training/saving.py"],
        ]
