"""Detectors trained for a few steps on tiny sets; what they need, and what a restart changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from solo_minent.backbones import build_backbone
from solo_minent.checkpoint import read_results
from solo_minent.config import load_recipe, protocol, protocols
from solo_minent.errors import UserError
from solo_minent.evaluation.detect import detect_eval
from solo_minent.evaluation.detection_data import coco_data, detection_data
from solo_minent.evaluation.detection_models import build_detector
from solo_minent.evaluation.detection_training import DetectorTraining, lr_factor
from solo_minent.evaluation.targets import Target
from solo_minent.schema import DetectConfig

SMALL = [
    "backbone.name=timm:resnet18",
    "backbone.stem=imagenet",
    *[
        f"evaluation.detect.{line}"
        for line in (
            "steps=4",
            "batch_size=2",
            "lr=0.002",
            "warmup_steps=2",
            "lr_steps=[3]",
            "min_sizes=[64,96]",
            "max_size=128",
            "test_size=64",
            "precise_bn=2",
            "checkpoint_every=2",
        )
    ],
]


@pytest.fixture(autouse=True)
def few_regions(monkeypatch):
    """Fewer proposals an image than the hundreds of a real training: seconds instead of minutes."""

    def build(*args, original=build_detector):
        model = original(*args)
        model.rpn._pre_nms_top_n = {"training": 256, "testing": 256}
        model.rpn._post_nms_top_n = {"training": 64, "testing": 24}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        return model

    monkeypatch.setattr("solo_minent.evaluation.detection_models.build_detector", build)


@pytest.fixture
def run(tiny_run):
    """`run("head=fpn", output_dir=…)`: a configuration, and an untrained target."""

    def make(*keys, output_dir=None):
        place = [f"output_dir={output_dir}"] if output_dir else []
        own = DetectConfig.__dataclass_fields__
        keys = [f"evaluation.detect.{k}" if k.split("=")[0] in own else k for k in keys]
        config = tiny_run("minent", *SMALL, *place, *keys)
        torch.manual_seed(0)
        b = config.backbone
        backbone = build_backbone(b.name, b.stem, **b.kwargs)
        return config, Target("random", backbone, "initialised with seed 0")

    return make


def checkpoint(config):
    return next(config.run_dir.glob("detect/*/last.ckpt"))


def weights(config):
    return torch.load(checkpoint(config), weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def interrupt_at(monkeypatch, step):
    def interrupted(self, batch, batch_idx, original=DetectorTraining.training_step):
        if self.trainer.global_step == step:
            raise RuntimeError("power failure")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectorTraining, "training_step", interrupted)


def test_masks_on_coco_and_a_restart(run, tiny_coco, tmp_path, monkeypatch):
    train, test = detection_data(tiny_coco)
    config, target = run("head=c4", "mask=true")
    before = {key: value.clone() for key, value in target.backbone.state_dict().items()}
    result = detect_eval(config, target, train, test, progress=False)
    for key in ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"):
        assert 0 <= result[key] <= 100
    assert (result["train_images"], result["test_images"], result["classes"]) == (8, 4, 2)
    assert (result["evaluation"], result["dataset"]) == ("detect", tiny_coco.name)
    assert "Mask R-CNN C4" in result["protocol"] and "lr 0.002" in result["protocol"]
    assert read_results(config.run_dir) == [json.loads(json.dumps(result))]
    assert equal(before, target.backbone.state_dict())
    log = (checkpoint(config).parent / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,loss") and [line.split(",")[0] for line in log[1:]] == ["2", "4"]

    other, _ = run("head=c4", "mask=true", output_dir=tmp_path / "interrupted")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power failure"):
        interrupt_at(patch, 3)
        detect_eval(other, target, train, test, progress=False)
    assert not equal(weights(other), weights(config))
    again = detect_eval(other, target, train, test, progress=False)
    assert equal(weights(other), weights(config))
    assert (checkpoint(other).parent / "log.csv").read_text().splitlines() == log
    assert again["ap"] == result["ap"] and again["mask_ap"] == result["mask_ap"]

    # A finished training is not repeated, and other settings have their own folder.
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0)
        assert detect_eval(other, target, train, test, progress=False)["ap"] == result["ap"]
        changed, _ = run("head=c4", "mask=true", "lr=0.003", output_dir=tmp_path / "interrupted")
        with pytest.raises(RuntimeError, match="power failure"):
            detect_eval(changed, target, train, test, progress=False)

    checkpoint(other).write_bytes(checkpoint(other).read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint is damaged: .*last.ckpt"):
        detect_eval(other, target, train, test, progress=False)


def test_pyramid_on_voc_with_worker_processes(run, tiny_voc):
    train, test = detection_data(tiny_voc)
    config, target = run("head=fpn", "box_head=4conv1fc", "steps=2", "data.num_workers=1")
    result = detect_eval(config, target, train, test, progress=False)
    assert {"ap", "ap50", "ap75", "voc_ap", "voc_ap50", "voc_ap75"} <= result.keys()
    assert "mask_ap" not in result
    assert result["dataset"] == "voc07+12" and "difficult objects trained on" in result["protocol"]


def test_it_learns_to_find_squares_and_discs(run, tiny_coco):
    """On the pictures that it was trained on: far from chance, which is 0 here."""
    train, _ = detection_data(tiny_coco)
    settings = ("steps=120", "lr=0.03", "batch_size=4", "lr_steps=[100]", "precise_bn=8")
    sizes = ("backbone.stem=small", "backbone.kwargs.channels=[16,32,32,64]", "min_sizes=[64]")
    config, target = run(*settings, *sizes, "checkpoint_every=120")
    assert detect_eval(config, target, train, train, progress=False)["ap50"] > 50


def test_two_processes_train_and_one_tests(tiny_coco, tmp_path):
    script = Path(__file__).with_name("ddp_detect.py")
    command = [sys.executable, str(script), str(tiny_coco), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()[-2:]) == ["stored: False", "stored: True"]
    (run_dir,) = (path.parent for path in tmp_path.glob("runs/**/results.json"))
    assert len(read_results(run_dir)) == 1


def test_the_schedule_is_detectron2s():
    settings = DetectConfig(warmup_steps=100, warmup_factor=0.001, lr_steps=[300, 400], gamma=0.1)
    steps = (0, 50, 100, 299, 300, 400)
    expected = (0.001, 0.5005, 1, 1, 0.1, 0.01)
    assert [lr_factor(settings, step) for step in steps] == pytest.approx(expected)


def test_norms_have_their_own_weight_decay(run, tiny_coco):
    config, target = run()
    model = build_detector(target.backbone, config.evaluation.detect, 2, (0.5,) * 3, (0.2,) * 3)
    training = DetectorTraining(model, None, config.evaluation.detect, 0, 0)
    plain, norms = training.configure_optimizers()["optimizer"].param_groups
    assert (plain["weight_decay"], norms["weight_decay"]) == (1e-4, 0)
    count = 2 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(norms["params"]) == count
    assert len(plain["params"]) + count == len(list(model.parameters()))


def test_protocols():
    assert protocols("detect") == [
        "corinfomax_coco_c4",
        "twist_coco_fpn",
        "twist_voc_fpn",
        "voc_c4",
    ]
    for name in protocols("detect"):
        settings = load_recipe("digits/minent", protocol("detect", name)).evaluation.detect
        assert settings.name == name
        assert settings.mask == ("coco" in name) and name.endswith(settings.head)
        if name == "voc_c4":
            assert settings == DetectConfig()


@pytest.mark.parametrize(
    ("name", "message"), [("timm:vit_tiny_patch16_224", "VisionTransformer"), ("pixels", "Pixels")]
)
def test_other_backbones_are_refused(run, tiny_coco, name, message):
    from solo_minent.evaluation.targets import Pixels

    config, _ = run()
    backbone = Pixels(32) if name == "pixels" else build_backbone(name)
    with pytest.raises(UserError, match=f"no stages to detect on: {message}"):
        detect_eval(config, Target("random", backbone, ""), *detection_data(tiny_coco))


def test_refusals(run, tiny_coco, tiny_voc, tmp_path):
    train, test = detection_data(tiny_coco)
    config, target = run("mask=true")
    with pytest.raises(UserError, match="masks are not annotated: the training split of voc07"):
        detect_eval(config, target, *detection_data(tiny_voc))
    split = tiny_coco / "val"
    other = coco_data(tiny_coco / "annotations/instances_val.json", split, ["square", "disc"])
    with pytest.raises(UserError, match="classes differ"):
        detect_eval(config, target, train, other)
    config, target = run("devices=2", "batch_size=3", "accelerator=cpu")
    with pytest.raises(UserError, match="batch does not divide"):
        detect_eval(config, target, train, test)
    crowds = json.loads((tiny_coco / "annotations/instances_val.json").read_text())
    for entry in crowds["annotations"]:
        entry["iscrowd"] = 1
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps(crowds))
    ignored = coco_data(path, split, train.classes)
    config, target = run()
    with pytest.raises(UserError, match="nothing to find"):
        detect_eval(config, target, train, ignored)
    with pytest.raises(UserError, match="nothing to train on"):
        detect_eval(config, target, ignored, test)
    assert not config.run_dir.exists()


def test_an_image_that_cannot_be_used_is_named(run, tiny_coco):
    from PIL import Image

    train, test = detection_data(tiny_coco)
    config, target = run("steps=4", "batch_size=8")
    path = train.images[3].path
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"image cannot be decoded: {path}"):
        detect_eval(config, target, train, test, progress=False)
    Image.new("RGB", (60, 48)).save(path)
    with pytest.raises(UserError, match=f"another size than annotated: {path} is 60 x 48"):
        detect_eval(config, target, train, test, progress=False)


def test_divergence_is_an_error(run, tiny_coco):
    config, target = run("lr=1e12", "warmup_steps=0", "steps=8", "checkpoint_every=8")
    with pytest.raises(
        UserError, match="training has diverged: .*Lower evaluation.detect.lr=1e.12"
    ):
        detect_eval(config, target, *detection_data(tiny_coco), progress=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head=c5", "evaluation.detect.head is unknown: c5.*c4, fpn"),
        ("min_sizes=[]", "min_sizes are none"),
        ("min_sizes=[16]", "min_sizes is out of range: 16"),
        ("lr_steps=[0]", "lr_steps is out of range: 0"),
        ("steps=0", "evaluation.detect.steps is out of range: 0"),
    ],
)
def test_settings_are_checked(tiny_run, override, message):
    with pytest.raises(UserError, match=message):
        tiny_run("minent", f"evaluation.detect.{override}")
