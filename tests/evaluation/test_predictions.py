"""The networks of a checkpoint and the classes that their heads predict."""

from dataclasses import replace

import pytest
import torch

from solo_minent import host
from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import CHECKPOINT_FILE
from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.evaluation import predictions
from solo_minent.evaluation.cluster import cluster_eval
from solo_minent.evaluation.predictions import load_network, predict
from solo_minent.evaluation.targets import load_target
from solo_minent.files import sha256
from solo_minent.losses import minent_targets
from solo_minent.methods import available


def module_of(config):
    """A freshly made module whose batch norms have seen something."""
    b = config.backbone
    host.register(available()[config.method])
    backbone = build_backbone(b.name, b.stem, **b.kwargs)
    module = host.build_method(config, backbone, lambda step: 1.0, num_classes=10)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
    return module.eval()


def save(config, module, **more):
    """A checkpoint as Lightning writes it, less what nobody reads here."""
    path = config.run_dir / CHECKPOINT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    log = {"EpochLog": {"rows": []}}
    contents = {"state_dict": module.state_dict(), "epoch": 6, "callbacks": log} | more
    torch.save(contents, path)
    return path


def images(count=12):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_student_and_teacher(tiny_run):
    config = tiny_run("twist", "method_kwargs.momentum_teacher=true")
    module = module_of(config)
    with torch.no_grad():  # a teacher that is not the student's copy
        for parameter in module.teacher_projector.parameters():
            parameter.mul_(-1.5)
        for parameter in module.teacher_backbone.parameters():
            parameter.add_(0.01)
    path = save(config, module)
    pairs = {
        "student": (module.backbone, module.projector),
        "teacher": (module.teacher_backbone, module.teacher_projector),
    }
    chosen = []
    for which, (backbone, projector) in pairs.items():
        network = load_network(config, which)
        assert network.has_teacher and network.epochs == 7
        assert which in network.origin and network.checkpoint_sha256 == sha256(path)
        with torch.inference_mode():
            features = backbone(images())
            assert torch.equal(network.backbone.eval()(images()), features)
            (logits,) = projector([features])
        (head,) = predict(config, network, features)
        assert torch.equal(head.classes, logits.argmax(1))
        assert torch.equal(head.ranked, logits.argsort(1, descending=True)[:, :5])
        chosen.append(head.classes)
        target = replace(load_target(config, "random"), kind=which.replace("student", "trained"))
        (result,) = cluster_eval(config, target)
        assert f"predicted classes, {which}, head 16" in result["protocol"]
        assert result["weights"] == network.origin
    assert not torch.equal(*chosen)


def test_a_run_without_teacher_is_told(tiny_run):
    config = tiny_run("twist")
    save(config, module_of(config))
    with pytest.raises(UserError, match="run has no teacher"):
        load_network(config, "teacher")


@pytest.mark.parametrize("norm", ["bn", "softmax", "l2", "none"])
def test_heads_of_minent(tiny_run, norm):
    config = tiny_run("minent", "method_kwargs.heads=[8,4,8]", f"method_kwargs.norm={norm}")
    module = module_of(config)
    save(config, module)
    network = load_network(config)
    with torch.inference_mode():
        features = module.backbone(images())
        outputs = module.projector(features)
    found = list(predict(config, network, features))
    assert [head.head for head in found] == ["8 no. 1", "4", "8 no. 2"]
    for head, logits in zip(found, outputs, strict=True):
        assert torch.equal(head.classes, minent_targets(logits, norm))
        assert head.ranked is None and f"norm={norm}" in head.rule


def test_the_batches_of_a_head_do_not_matter(tiny_run, monkeypatch):
    config = tiny_run("minent")
    module = module_of(config)
    save(config, module)
    network = load_network(config)
    features = torch.randn(50, module.features_dim, generator=torch.Generator().manual_seed(2))
    whole = [head.classes for head in predict(config, network, features)]
    monkeypatch.setattr(predictions, "_ROWS", 7)
    pieces = [head.classes for head in predict(config, network, features)]
    assert all(map(torch.equal, whole, pieces))


def test_outputs_that_are_not_finite_are_refused(tiny_run):
    config = tiny_run("twist")
    module = module_of(config)
    torch.nn.init.constant_(module.projector.mlp[-1].bias, torch.inf)
    save(config, module)
    network = load_network(config)
    with pytest.raises(UserError, match="outputs that are not finite"):
        list(predict(config, network, torch.zeros(3, module.features_dim)))


def test_a_checkpoint_of_another_architecture_is_refused(tiny_run):
    config = tiny_run("twist")
    save(config, module_of(config))
    wider = tiny_run("twist", "method_kwargs.output_dim=8")
    with pytest.raises(
        UserError, match="does not fit: .* tensors of the heads.*first projector.mlp.6"
    ):
        load_network(wider)
    deeper = tiny_run("twist", "backbone.kwargs.channels=[8,16,16,24]")
    with pytest.raises(UserError, match="weights do not fit: .* differ"):
        load_network(deeper)


def test_layers_that_are_missing_or_foreign_are_refused(tiny_run):
    config = tiny_run("minent")
    module = module_of(config)
    state = module.state_dict()
    del state["projector.heads.1.0.bias"]
    save(config, module, state_dict=state)
    with pytest.raises(UserError, match="1 of .* heads .* first projector.heads.1.0.bias"):
        load_network(config)
    state = {**module.state_dict(), "projector.heads.9.weight": torch.zeros(1)}
    save(config, module, state_dict=state)
    with pytest.raises(UserError, match="first projector.heads.9.weight"):
        load_network(config)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


DAMAGES = {
    "cut": "damaged",
    "empty": "damaged",
    "text": "damaged",
    "code": "ask for code",
    "other": "damaged",
    "list": "damaged",
    "numbers": "do not fit|no known layout",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused(tiny_run, damage, capsys):
    config = tiny_run("twist")
    module = module_of(config)
    path = save(config, module)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "code":
        save(config, module, state_dict=Code())
    elif damage == "other":
        torch.save({"weights": module.state_dict()}, path)
    elif damage == "list":
        save(config, module, state_dict=[])
    elif damage == "numbers":
        save(config, module, state_dict={"backbone.conv1.weight": 3})
    with pytest.raises(UserError, match=DAMAGES[damage]) as caught:
        load_network(config)
    assert str(path) in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_loading_leaves_the_random_numbers_alone(tiny_run):
    config = tiny_run("minent")
    save(config, module_of(config))
    before = torch.get_rng_state()
    load_network(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_method_that_predicts_classes_is_there():
    for name in predictions.METHODS:
        assert load_recipe(f"digits/{name}").method == name
