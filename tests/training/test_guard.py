"""The guard: what is not finite stops a run before it reaches the weights, or is passed over."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

import solo_minent.pretrain
from solo_minent.checkpoint import CHECKPOINT_FILE as CHECKPOINT
from solo_minent.config import to_yaml
from solo_minent.errors import UserError
from solo_minent.host.optimizers import Lars
from solo_minent.methods import available
from solo_minent.monitors import Monitors
from solo_minent.pretrain import pretrain
from solo_minent.schema import GuardConfig, RunConfig
from solo_minent.training import guard, nonfinite

METHODS = ("minent", "mec", "twist", "corinfomax")
QUICK = ("evaluation.knn_every=0", "data.val_images=40", "monitor_every=1")
EVERY = "checkpoint.every_steps=1"


class Probe(Callback):
    """What a run holds before each batch and after it, and the images of each batch."""

    def __init__(self):
        self.before, self.after, self.indices, self.lr = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.module = module
        self.before.append(state_of(trainer, module))
        self.indices.append(batch[0].tolist())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after.append(state_of(trainer, module))
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])


def state_of(trainer, module):
    looks = next(c for c in trainer.callbacks if isinstance(c, Monitors))
    return copy.deepcopy(
        {
            "module": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "log": module.meter.rank_state(),
            "monitors": looks.rank_state(),
        }
    )


def same(a, b):
    """Bit for bit; NaN is like no other."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def probe(monkeypatch):
    """Watches the run that follows."""
    watching = Probe()
    make = solo_minent.pretrain.make_trainer

    def make_watched(config, accelerator, callbacks, *rest):
        return make(config, accelerator, [watching, *callbacks], *rest)

    monkeypatch.setattr(solo_minent.pretrain, "make_trainer", make_watched)
    return watching


@pytest.fixture
def spoil(monkeypatch):
    """`spoil("mec", change, 3, 7)`: `change(method, views, terms)` in steps 3 and 7."""

    def patch(name, change, *steps):
        method = available()[name]
        original = method.ssl_loss

        def ssl_loss(self, views, progress):
            terms = original(self, views, progress)
            if progress.step + 1 in steps:
                change(self, views, terms)
            return terms

        monkeypatch.setattr(method, "ssl_loss", ssl_loss)

    return patch


def nan_loss(method, views, terms):
    terms["loss"] = terms["loss"] * math.nan


def large_gradient(size):
    """Of the first view's embedding; the loss is what it was."""

    def change(method, views, terms):
        first = views.z[0][0] if isinstance(views.z[0], list) else views.z[0]
        through = first.sum()
        through.register_hook(lambda gradient: torch.full_like(gradient, size))
        terms["loss"] = terms["loss"] + (through - through.detach())

    return change


def report(config, step, rank=0):
    """A file of the guard, by a reader that takes JSON only."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (config.run_dir / "nonfinite" / f"step-{step}-rank-{rank}.json").read_text()
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_nan_stops_before_the_update(tiny_run, probe, spoil, method):
    spoil(method, nan_loss, 7)
    config = tiny_run(method, EVERY, *QUICK)
    with pytest.raises(UserError) as stopped:
        pretrain(config)
    path = config.run_dir / CHECKPOINT
    listed = config.run_dir / "nonfinite" / "step-7-rank-0.json"
    assert str(stopped.value) == (
        f"training is not finite: train_{method}_loss is nan at step 7 on rank 0 (epoch 2). "
        f"The weights are those before this step; the last good checkpoint is {path} (step 6). "
        f"The images of the batch are listed in {listed}. Lower optimizer.lr, in a new run with "
        f"another name=…, or pass over such steps with guard.skip=1 --resume-from {path}"
    )
    before = probe.before[6]
    assert len(probe.before) == 7
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 6
    assert same(checkpoint["state_dict"], before["module"])
    assert same(checkpoint["optimizer_states"][0]["state"], before["optimizer"])
    assert not (config.run_dir / "backbone.safetensors").exists()

    found = report(config, 7)
    assert [found[key] for key in ("step", "epoch", "rank")] == [7, 2, 0]
    (batch,) = found["batches"]
    assert batch["batch"] == 1 and batch["indices"] == probe.indices[6]
    assert batch["names"] == [
        f"image {index} of a part of digits train" for index in batch["indices"]
    ]
    assert batch["terms"][f"train_{method}_loss"] == "nan"
    assert math.isfinite(batch["terms"]["train_class_loss"])
    assert any(name.startswith(("encoder.", "backbone.")) for name in found["gradients"])


@pytest.mark.parametrize(
    ("bad", "made", "validated", "rows"),
    [
        (3, 4, 0, 0),  # known in the step after it
        (5, 5, 0, 0),  # of the last one of an epoch, before it is validated
        (7, 8, 1, 1),
        (10, 10, 1, 1),  # and of the last one of a run, before it is exported
    ],
)
def test_a_step_is_judged_one_later_and_before_anything_is_made_of_it(
    tiny_run, probe, spoil, monkeypatch, bad, made, validated, rows
):
    runs = []
    monkeypatch.setattr(Probe, "on_validation_batch_start", lambda *_: runs.append(1))
    spoil("mec", nan_loss, bad)
    config = tiny_run("mec", *QUICK)
    with pytest.raises(UserError, match=rf"train_mec_loss is nan at step {bad} on rank 0"):
        pretrain(config)
    assert len(probe.before) == made
    assert bool(runs) == bool(validated)
    (batch,) = report(config, bad)["batches"]
    assert batch["indices"] == probe.indices[bad - 1]
    path = config.run_dir / CHECKPOINT
    assert path.exists() == (rows > 0)
    if rows:
        assert torch.load(path, weights_only=True)["global_step"] == 5 * rows
        assert pd.read_csv(config.run_dir / "log.csv")["epoch"].tolist() == list(range(1, rows + 1))
    assert not (config.run_dir / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    ("optimizer", "made"),
    [
        (("adam",), 4),
        (("adamw",), 4),
        (("sgd", "+optimizer.kwargs.momentum=0.9"), 4),
        (("lars", "+optimizer.kwargs.momentum=0.9"), 4),
        (("adam", "+optimizer.kwargs.fused=false"), 3),  # it has to know within the step
    ],
)
def test_no_weight_is_changed_by_what_is_read_late(tiny_run, probe, spoil, optimizer, made):
    spoil("mec", nan_loss, 3)
    name, *words = optimizer
    with pytest.raises(UserError, match="The weights are those before this step"):
        pretrain(tiny_run("mec", f"optimizer.name={name}", *words, *QUICK))
    assert len(probe.before) == made
    before = probe.before[2]["module"]
    weights = dict(probe.module.named_parameters())
    student = [n for n in weights if not n.startswith("teacher_")]
    assert all(torch.equal(weights[n], before[n]) for n in student)
    if made == 4:  # the next step saw nothing but the forward pass of the one that was left out
        assert not same(before, probe.module.state_dict())


def test_gradients_that_are_infinite_stop_before_they_are_clipped(tiny_run, probe, spoil):
    spoil("mec", large_gradient(math.inf), 3)
    config = tiny_run("mec", "gradient_clip_val=1.0", *QUICK)
    with pytest.raises(UserError) as stopped:
        pretrain(config)
    named = r"gradient of \S+, \S+, \S+ and \d+ more at step 3 on rank 0 \(epoch 1\)\. The weights"
    assert re.search(named, str(stopped.value))
    assert "; there is no checkpoint yet. The images" in str(stopped.value)
    assert str(stopped.value).endswith("pass over such steps with guard.skip=1")
    found = report(config, 3)
    assert all(math.isfinite(value) for value in found["batches"][0]["terms"].values())
    parameters = dict(probe.module.named_parameters())
    assert found["gradients"] and set(found["gradients"]) <= parameters.keys()
    assert not (config.run_dir / CHECKPOINT).exists()


def test_large_gradients_whose_squares_overflow_are_finite(tiny_run, spoil):
    spoil("mec", large_gradient(1e25), 3)
    config = tiny_run("mec", "max_epochs=1", "optimizer.name=sgd", "optimizer.lr=1e-38", *QUICK)
    assert (pretrain(config) / "backbone.safetensors").is_file()
    assert not (config.run_dir / "nonfinite").exists()


def test_what_is_not_finite_is_not_saved(tiny_run, spoil):
    spoil("minent", large_gradient(1e25), 3)  # Adam keeps its square
    config = tiny_run("minent", EVERY, *QUICK)
    wanted = r"finite: exp_avg_sq of \S+, .* more after step 3 on rank 0\. That is not saved; "
    with pytest.raises(UserError, match=wanted + r"the last good checkpoint is .* \(step 2\)"):
        pretrain(config)
    assert torch.load(config.run_dir / CHECKPOINT, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    ("method", "optimizer", "further"),
    [
        ("minent", "adam", []),
        ("mec", "lars", ["optimizer.kwargs={momentum: 0.9}"]),
        ("twist", "adamw", ["method_kwargs.momentum_teacher=true"]),
        ("corinfomax", "sgd", ["optimizer.kwargs={momentum: 0.9}"]),
    ],
)
def test_a_step_that_is_passed_over_changes_nothing(
    tiny_run, probe, spoil, capsys, method, optimizer, further
):
    spoil(method, nan_loss, 1, 7)
    decay = ["optimizer.weight_decay=0.1", f"optimizer.name={optimizer}"]
    config = tiny_run(method, "guard.skip=2", *decay, *further, *QUICK)
    log = pd.read_csv(pretrain(config) / "log.csv")
    assert len(probe.before) == 10
    changed = [not same(a, b) for a, b in zip(probe.before, probe.after, strict=True)]
    assert changed == [step not in (1, 7) for step in range(1, 11)]
    pairs = zip(probe.before, probe.after, strict=True)
    assert [not same(a["module"], b["module"]) for a, b in pairs] == changed
    # The schedule goes on, and so does the order of the images.
    assert len(set(probe.lr)) == 10
    assert sorted(sum(probe.indices[:5], [])) == sorted(sum(probe.indices[5:], []))
    assert log["skipped_steps"].iloc[-2:].tolist() == [1, 2]
    assert log[f"train_{method}_loss"].iloc[-2:].notna().all()
    lines = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert [line.partition(". The images")[0] for line in lines] == [
        f"step passed over ({n} of guard.skip=2): train_{method}_loss is nan at step {step} on "
        f"rank 0 (epoch {n})"
        for n, step in ((1, 1), (2, 7))
    ]
    assert [report(config, step)["step"] for step in (1, 7)] == [1, 7]


def test_the_step_after_the_last_that_may_be_passed_over_stops(tiny_run, spoil):
    spoil("mec", nan_loss, 2, 7)
    config = tiny_run("mec", "guard.skip=1", EVERY, *QUICK)
    for _ in range(2):  # started again, it still knows
        with pytest.raises(UserError, match=r"at step 7 .*\(1 were\) with guard.skip=2 --resume"):
            pretrain(config)
        checkpoint = torch.load(config.run_dir / CHECKPOINT, weights_only=True)
        assert checkpoint["global_step"] == 6
        assert checkpoint["callbacks"]["NonFiniteGuard"] == {"skipped": 1}


def test_without_skip_the_log_has_no_column_for_it(tiny_run):
    config = tiny_run("mec", "max_epochs=1", *QUICK)
    assert "skipped_steps" not in pd.read_csv(pretrain(config) / "log.csv")
    assert not (config.run_dir / "nonfinite").exists()


def test_every_accumulated_batch_counts(tiny_run, probe, spoil):
    calls = []

    def first_of_two(method, views, terms):
        calls.append(1)
        if len(calls) == 1:  # its gradient is finite
            terms["loss"] = terms["loss"] + math.inf

    spoil("corinfomax", first_of_two, 2)
    config = tiny_run(
        "corinfomax", "max_epochs=1", "accumulate_grad_batches=2", "guard.skip=1", *QUICK
    )
    pretrain(config)
    # Batches 0 and 1 are step 1, batches 2 and 3 step 2, the last one step 3.
    assert not same(probe.before[0], probe.after[1])
    assert same(probe.before[2], probe.after[3])
    assert not same(probe.before[4], probe.after[4])
    batches = report(config, 2)["batches"]
    assert [batch["batch"] for batch in batches] == [2, 3]
    assert [batch["indices"] for batch in batches] == probe.indices[2:4]
    values = [batch["terms"]["train_corinfomax_loss"] for batch in batches]
    assert values[0] == "inf" and math.isfinite(values[1])


def test_a_covariance_beyond_repair_is_named(tiny_run, spoil, probe):
    original = available()["corinfomax"].build
    broken = []

    def build(self, params):
        original(self, params)
        terms = self.criterion.terms

        def spoiled(*z):
            if len(broken) == 3:
                self.criterion.R1.copy_(-1e6 * torch.eye(len(self.criterion.R1)))
            broken.append(1)
            return terms(*z)

        self.criterion.terms = spoiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(available()["corinfomax"], "build", build)
        config = tiny_run("corinfomax", EVERY, *QUICK)
        wanted = "train_corinfomax_loss is nan, train_corinfomax_logdet is nan at step 4 on rank 0"
        with pytest.raises(UserError, match=wanted):
            pretrain(config)
    checkpoint = torch.load(config.run_dir / CHECKPOINT, weights_only=True)
    assert same(checkpoint["state_dict"], probe.before[3]["module"])


def test_images_that_cannot_be_listed_do_not_hide_the_reason(tiny_run, spoil, monkeypatch):
    def full(path, value):
        raise UserError("disk is full")

    spoil("mec", nan_loss, 1)
    monkeypatch.setattr(guard, "write_json", full)
    wanted = "train_mec_loss is nan at step 1 .* batch could not be listed: disk is full Lower"
    with pytest.raises(UserError, match=wanted):
        pretrain(tiny_run("mec", *QUICK))


class Plain(LightningModule):
    """One weight w; the loss is w + c, its gradient f, in batches [index, [f], c]."""

    def __init__(self, fused=False):
        super().__init__()
        self.fused = fused
        self.weight = nn.Parameter(torch.ones(1))
        self.update_refused = False

    def training_step(self, batch, batch_idx):
        through = self.weight.sum()
        through.register_hook(lambda gradient: gradient * batch[1][0].item())
        loss = through + batch[2].sum()
        self.terms = {"train_plain_loss": loss.detach()}
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=self.fused)


def fit_plain(tmp_path, factors, constants, scale, skip=0, module=None):
    """Steps with these gradients and losses under a loss scale; the module after it."""
    module = Plain() if module is None else module
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    data = [(i, [f], c) for i, (f, c) in enumerate(zip(factors, constants, strict=True))]
    config = RunConfig(folder=str(tmp_path), guard=GuardConfig(skip))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard.NonFiniteGuard(config, None)],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    trainer.fit(module, DataLoader(data, 1))
    return module, scaler


@pytest.mark.parametrize("fused", [False, True])  # it undoes the scale by itself
def test_a_loss_scale_searches_by_itself(tmp_path, fused):
    factors = [1.0, math.inf, 1.0]
    module, scaler = fit_plain(tmp_path, factors, [0.0] * 3, scale=4.0, module=Plain(fused))
    assert module.weight.item() == pytest.approx(0.8)
    assert scaler.get_scale() == 2.0


def test_a_step_under_a_loss_scale_is_passed_over(tmp_path):
    constants = [0.0, math.inf, 0.0]
    module, scaler = fit_plain(tmp_path, [1.0, 1.0, 1.0], constants, scale=4.0, skip=1)
    assert module.weight.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("factor", "constant", "scale", "what"),
    [
        (1.0, math.inf, 4.0, "train_plain_loss is inf"),
        (1.0, -math.inf, 4.0, "train_plain_loss is -inf"),
        # No smaller scale will mend it.
        (math.nan, 0.0, guard.MIN_SCALE / 2, "gradient of weight"),
    ],
)
def test_a_loss_scale_does_not_excuse_everything(tmp_path, factor, constant, scale, what):
    with pytest.raises(UserError, match=f"{what} at step 2 on rank 0"):
        fit_plain(tmp_path, [1.0, factor], [0.0, constant], scale)


@pytest.mark.parametrize("optimizer", ["plain", "fused", "lars"])
def test_a_loss_scale_that_sees_finite_gradients_updates_nothing(tmp_path, optimizer):
    module = Plain(optimizer == "fused")
    if optimizer == "lars":
        module.configure_optimizers = lambda: Lars(module.parameters(), lr=0.1)
    with pytest.raises(UserError, match="The weights are those before this step"):
        fit_plain(tmp_path, [1.0, 1.0], [math.inf, 0.0], 4.0, module=module)
    assert module.weight.item() == 1.0


def test_the_rank_that_brought_it_in_is_named():
    clean, mine = nonfinite.Found(), nonfinite.Found(terms={"train_class_loss": "nan", "b": "inf"})
    shared = nonfinite.Found(terms={"b": "inf"})
    assert nonfinite.where([mine]) == "rank 0"
    assert nonfinite.where([clean, mine, clean, mine]) == "ranks 1, 3"
    assert nonfinite.where([shared, mine]) == "rank 1"
    assert nonfinite.where([shared, shared]) == "all 2 ranks"
    # Losses of all images and synchronised batch norms spread it: the images still tell.
    assert nonfinite.where([mine, nonfinite.Found(terms=mine.terms, images=True)]) == "rank 1"
    assert nonfinite.where([nonfinite.Found(tensors=["w"]), clean]) == "rank 0"


def test_ranks_decide_together(tiny_run, tmp_path):
    """Step 2 is infinite on rank 1 alone, step 4 on rank 0 alone; gradients are finite."""
    config = tiny_run("mec", "guard.skip=1", "devices=2", "optimizer.batch_size=16", EVERY, *QUICK)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    script = Path(__file__).with_name("guard_ranks.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(recipe), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("".join(process.communicate()))
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["message"] == ranks[1]["message"], output + errors
    assert "train_mec_loss is inf at step 4 on rank 0 (epoch 1)" in ranks[0]["message"]
    assert "(step 3)" in ranks[0]["message"] and "step-4-rank-0.json" in ranks[0]["message"]
    assert errors.count("train_mec_loss is inf at step 2 on rank 1 (epoch 1)") == 1
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for rank in (0, 1):
        # Steps 1 and 3 move the weights and the batch norms, the second changes nothing.
        assert ranks[rank]["moved"] == [True, False, True]
        for step in (2, 4):
            found = report(config, step, rank)
            assert found["rank"] == rank
            assert found["batches"][0]["indices"] == ranks[rank]["indices"][step - 1]
            bad = found["batches"][0]["terms"]["train_mec_loss"] == "inf"
            assert bad == (rank == {2: 1, 4: 0}[step])
            assert found["gradients"] == []
