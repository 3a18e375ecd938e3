"""Trains a detector in two processes: `ddp_detect.py <COCO folder> <output folder>`."""

import sys

import torch

from solo_minent.backbones import build_backbone
from solo_minent.config import load_recipe
from solo_minent.evaluation.detect import detect_eval
from solo_minent.evaluation.detection_data import detection_data
from solo_minent.evaluation.targets import Target

SETTINGS = "mask=true steps=2 batch_size=2 precise_bn=1 min_sizes=[64] test_size=64 lr=0.001"

if __name__ == "__main__":
    torch.set_num_threads(1)
    overrides = [f"evaluation.detect.{line}" for line in SETTINGS.split()]
    overrides += ["devices=2", "accelerator=cpu", "data.num_workers=0", f"output_dir={sys.argv[2]}"]
    config = load_recipe("digits/minent", overrides)
    backbone = build_backbone("timm:resnet18", channels=[8, 16, 16, 16])
    target = Target("random", backbone, "initialised")
    result = detect_eval(config, target, *detection_data(sys.argv[1]), progress=False)
    print(f"stored: {'mask_ap' in result}", flush=True)
