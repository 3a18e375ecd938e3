"""A method of ours as a LightningModule: training, teacher, optimiser, saving and resuming."""

from __future__ import annotations

import importlib

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from solo_minent import host
from solo_minent.errors import UserError


def build(run_config, backbone, lr_factor=None, online_knn=None, **changes):
    config = run_config(**changes)
    return host.build_method(config, backbone, lr_factor, num_classes=3, online_knn=online_knn)


class Record(Callback):
    """Learning rates and teacher momentum after every optimiser step; saves once."""

    def __init__(self, save_after: int | None = None, path=None) -> None:
        self.lrs, self.taus, self.save_after, self.path = [], [], save_after, path

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.lrs.append([group["lr"] for group in optimizer.param_groups])

    def on_train_start(self, trainer, module):
        if not getattr(module, "teacher", False):
            return
        original = module.update_teacher

        def update_teacher(progress):
            self.taus.append((progress.step, original(progress)))
            return self.taus[-1][1]

        module.update_teacher = update_teacher

    def on_train_epoch_end(self, trainer, module):
        if self.save_after == trainer.current_epoch:
            trainer.save_checkpoint(self.path)


def test_fit_logs_every_term_and_online_evaluation(tiny, run_config, backbone, loaders, trainer):
    module = build(run_config, backbone, online_knn=3)
    fit = trainer()
    fit.fit(module, *loaders())
    logged = fit.callback_metrics
    for name in ("train_tiny_loss", "train_tiny_pull", "train_class_loss", "tau"):
        assert torch.isfinite(logged[name]), name
    assert logged["train_tiny_loss_epoch"] > 0
    assert 0 <= logged["val_acc1"] <= 100
    assert 0 <= logged["val_knn_acc1"] <= 100


def test_loss_is_the_methods_plus_the_classifiers(plain, run_config, backbone, loaders, trainer):
    losses = {}

    class Grab(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            metrics = trainer.callback_metrics
            losses["total"] = outputs["loss"]
            losses["parts"] = metrics["train_plain_loss"] + metrics["train_class_loss"]

    module = build(run_config, backbone, method="plain")
    trainer(1, callbacks=[Grab()], limit_train_batches=1).fit(module, loaders()[0])
    torch.testing.assert_close(losses["total"], losses["parts"])


def test_progress_counts_optimizer_steps_under_accumulation(
    tiny, run_config, backbone, loaders, trainer
):
    module = build(run_config, backbone)
    record = Record()
    trainer(2, accumulate_grad_batches=2, callbacks=[record]).fit(module, loaders(32)[0])
    seen = [(p.step, p.total_steps, p.epoch, p.total_epochs) for p in module.seen]
    steps = [0, 0, 1, 1, 2, 2, 3, 3]
    assert seen == [(s, 4, int(i >= 4), 2) for i, s in enumerate(steps)]
    assert len(record.lrs) == 4


def test_teacher_moves_once_per_optimizer_step(tiny, run_config, backbone, loaders, trainer):
    module = build(run_config, backbone)
    record = Record()
    before = [p.clone() for p in module.teacher_backbone.parameters()]
    fit = trainer(2, accumulate_grad_batches=2, callbacks=[record])
    fit.fit(module, loaders(32)[0])
    assert [step for step, _ in record.taus] == [0, 1, 2, 3]
    assert record.taus[0][1] == pytest.approx(0.9)
    assert record.taus[2][1] == pytest.approx(0.95)  # half way from 0.9 to 1.0
    assert fit.callback_metrics["tau_step"] == pytest.approx(record.taus[3][1])
    after = list(module.teacher_backbone.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_optimizer_holds_student_and_heads_and_no_teacher(tiny, run_config, backbone):
    module = build(run_config, backbone, lr_factor=lambda step: 1.0)
    optimizer = module.configure_optimizers()["optimizer"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    student = (module.backbone, module.classifier, module.projector)
    assert held == {id(p) for part in student for p in part.parameters()}
    everything = sum(p.numel() for p in module.parameters())
    teacher = (module.teacher_backbone, module.teacher_projector)
    parts = sum(p.numel() for part in (*student, *teacher) for p in part.parameters())
    assert everything == parts, "the stand-in backbone left parameters behind"


def test_backbone_is_ours_and_the_stand_in_draws_no_random_numbers(tiny, run_config, backbone):
    torch.manual_seed(3)
    expected_classifier = nn.Linear(8, 3)
    expected_hidden = nn.Linear(8, 6)
    torch.manual_seed(3)
    module = build(run_config, backbone)
    assert module.backbone is backbone
    assert module.features_dim == 8
    assert torch.equal(module.classifier.weight, expected_classifier.weight)
    assert torch.equal(module.projector[0].weight, expected_hidden.weight)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adam"])
def test_bias_and_norm_without_weight_decay(tiny, run_config, backbone, name):
    kwargs = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = {"name": name, "exclude_bias_n_norm": True, "kwargs": kwargs}
    module = build(run_config, backbone, lambda step: 1.0, optimizer=optimizer)
    decay = {}
    for group in module.configure_optimizers()["optimizer"].param_groups:
        decay |= {id(p): group["weight_decay"] for p in group["params"]}
    for part in (module.backbone, module.projector):
        for parameter in part.parameters():
            assert decay[id(parameter)] == (0.01 if parameter.ndim > 1 else 0)


def test_accumulation_does_not_scale_the_learning_rate(tiny, run_config, backbone):
    module = build(run_config, backbone, lambda step: 1.0, accumulate_grad_batches=4)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.05, 0.1]


def test_lr_factor_is_stepped_every_optimizer_step(tiny, run_config, backbone, loaders, trainer):
    module = build(run_config, backbone, lr_factor=lambda step: 1 / (1 + step))
    record = Record()
    trainer(2, callbacks=[record]).fit(module, loaders()[0])
    expected = [[base / (1 + step) for base in (0.1, 0.05, 0.1)] for step in range(4)]
    assert record.lrs == [pytest.approx(lrs) for lrs in expected]


def test_resume_equals_the_uninterrupted_run(
    tiny, run_config, backbone, loaders, trainer, tmp_path
):
    path = tmp_path / "half.ckpt"

    def run(record, ckpt_path=None):
        torch.manual_seed(1)
        backbone.load_state_dict(start)
        module = build(run_config, backbone, lambda step: 0.5 + 0.5 / (1 + step), max_epochs=4)
        trainer(4, callbacks=[record]).fit(module, loaders()[0], ckpt_path=ckpt_path)
        return module

    start = {k: v.clone() for k, v in backbone.state_dict().items()}
    whole = Record(save_after=1, path=path)
    expected = {k: v.clone() for k, v in run(whole).state_dict().items()}
    rest = Record()
    resumed = run(rest, ckpt_path=path).state_dict()
    assert rest.lrs == whole.lrs[4:]
    assert rest.taus == whole.taus[4:]
    assert len(set(rest.taus)) == 4
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_backbone_state_loads_strictly(tiny, run_config, backbone, loaders, trainer, tmp_path):
    module = build(run_config, backbone)
    fit = trainer(1)
    fit.fit(module, loaders()[0])
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    fresh = type(backbone)()
    fresh.load_state_dict(host.backbone_state(saved), strict=True)
    for name, value in backbone.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    with pytest.raises(UserError, match="state_dict has no backbone"):
        host.backbone_state(fresh.state_dict())


def test_small_crops_reach_the_loss(tiny, run_config, backbone, loaders, trainer):
    crops = [{"crop_size": 32, "num_crops": 2}, {"crop_size": 16, "num_crops": 3}]
    module = build(run_config, backbone, augmentations=crops)
    assert (module.num_large_crops, module.num_small_crops) == (2, 3)
    trainer(1).fit(module, loaders(16, (32, 32, 16, 16, 16))[0])
    assert module.views_seen == [5, 5]


def test_solo_scheduler_without_lr_factor(tiny, run_config, backbone, loaders, trainer):
    scheduler = {"name": "step", "lr_decay_epochs": [1]}
    module = build(run_config, backbone, scheduler=scheduler)
    record = Record()
    trainer(2, callbacks=[record]).fit(module, loaders(8)[0])
    assert [lrs[0] for lrs in record.lrs] == pytest.approx([0.1, 0.01])


def test_hyper_parameters_arrive_typed(tiny, run_config, backbone):
    module = build(run_config, backbone, method_kwargs={"widths": [3, 5], "weight": 2})
    assert module.params == tiny.Params(widths=[3, 5], weight=2.0)
    assert isinstance(module.params.weight, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method_kwargs": {"dim": "many"}}, "wrong value"),
        ({"method": "vicreg"}, "method is not registered: vicreg"),
        ({"optimizer": {"name": "lion"}}, "optimizer is unknown to solo-learn: lion"),
        ({"scheduler": {"name": "warmup_multistep"}}, "scheduler is unknown"),
    ],
)
def test_clear_errors(tiny, run_config, backbone, changes, message):
    with pytest.raises(UserError, match=message):
        build(run_config, backbone, **changes)


def test_backbone_must_say_its_width(tiny, run_config):
    with pytest.raises(UserError, match="no integer num_features: Linear"):
        build(run_config, nn.Linear(2, 2))


def test_register_twice_and_over_a_foreign_method(tiny):
    from solo.methods import METHODS

    assert host.register(tiny) is host.register(tiny) is METHODS["tiny"] is host.adapt(tiny)

    class Thief(tiny):
        name = "vicreg"

    theirs = METHODS["vicreg"]
    with pytest.raises(UserError, match="method name is taken.*vicreg is solo"):
        host.register(Thief)
    assert METHODS["vicreg"] is theirs


def test_linear_probe_trains_the_classifier_only(run_config, backbone, loaders, trainer):
    config = host.LinearConfig(
        num_classes=3,
        max_epochs=2,
        batch_size=8,
        lr=0.5,
        lr_decay_steps=[1],
        optimizer_kwargs={"momentum": 0.9},
    )
    module = host.linear_probe(backbone, config)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    record = Record()
    fit = trainer(2, callbacks=[record])
    _, labelled = loaders()
    fit.fit(module, labelled, labelled)
    assert [lrs[0] for lrs in record.lrs] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert 0 <= fit.callback_metrics["val_acc1"] <= 100
    for name, value in before.items():
        assert torch.equal(backbone.state_dict()[name], value), name


def test_linear_probe_takes_the_width_from_num_features(backbone):
    backbone.inplanes = 5  # solo-learn would believe this
    module = host.linear_probe(backbone, host.LinearConfig(num_classes=3))
    assert module.classifier.in_features == 8
    with pytest.raises(UserError, match="scheduler is unknown"):
        host.linear_probe(backbone, host.LinearConfig(num_classes=3, scheduler="reduce"))


def test_callbacks_write_checkpoints_that_open(
    tiny, run_config, backbone, loaders, trainer, tmp_path
):
    config = run_config()
    module = build(run_config, backbone)
    trainer(2, callbacks=host.callbacks(config)).fit(module, loaders()[0])
    (path,) = config.run_dir.rglob("*.ckpt")
    assert path.name.endswith("-ep=1.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 4


def test_umap_callback_without_its_packages(run_config, monkeypatch):
    module = importlib.import_module(f"solo_minent.host.{host.HOST}")
    monkeypatch.setattr(module, "auto_umap", None)
    with pytest.raises(UserError, match="UMAP callback cannot be imported.*pip install umap-learn"):
        host.callbacks(run_config(), umap=True)


def test_a_run_without_end(tiny, run_config, backbone, loaders, trainer):
    module = build(run_config, backbone)
    with pytest.raises(UserError, match="run has no end: max_epochs=-1"):
        trainer(-1).fit(module, loaders()[0])


def test_embeddings_of_a_vit_do_not_decay_where_biases_do_not(tiny, run_config):
    from solo_minent.backbones import build_backbone

    vit = build_backbone("timm:vit_tiny_patch16_224", None, img_size=32, depth=1)
    names = {id(p): name for name, p in vit.named_parameters()}
    optimizer = {"name": "adamw", "exclude_bias_n_norm": True, "kwargs": {}}
    module = host.build_method(
        run_config(optimizer=optimizer), vit, lambda step: 1.0, num_classes=3
    )
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"] if id(p) in names}
    assert decay.keys() == set(names.values())
    spared = {name for name, value in decay.items() if value == 0}
    assert {"pos_embed", "cls_token", "norm.bias", "blocks.0.norm1.weight"} <= spared
    assert decay["patch_embed.proj.weight"] == decay["blocks.0.mlp.fc1.weight"] == 0.01
