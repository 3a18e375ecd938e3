"""The detectors: torchvision's parts around a backbone's own layers."""

import pytest
import torch
from torch import nn

from solo_minent.backbones import build_backbone
from solo_minent.evaluation.detection_models import build_detector
from solo_minent.schema import DetectConfig

CONSTANTS = ((0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(("head", "box_head"), [("c4", "2fc"), ("fpn", "2fc"), ("fpn", "4conv1fc")])
@pytest.mark.parametrize("mask", [False, True])
def test_everything_trains(head, box_head, mask):
    backbone = build_backbone("timm:resnet18", channels=[8, 16, 16, 16]).requires_grad_(False)
    settings = DetectConfig(head=head, box_head=box_head, mask=mask, min_sizes=[64], max_size=96)
    model = build_detector(backbone, settings, 3, *CONSTANTS)
    model.rpn._post_nms_top_n = {"training": 16, "testing": 8}
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    model.roi_heads.score_thresh = 0.0
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[:, 8:40, 4:36] = 1
        boxes = torch.tensor([[4.0, 8, 36, 40], [4, 8, 36, 40]])
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks})
    losses = model.train()(images, targets)
    assert ("loss_mask" in losses) == mask
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    own, norms = (
        [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for module in (backbone, model)
    )
    assert len(norms) - len(own) == {"c4": 1, "fpn": 8 + 4 * (box_head != "2fc") + 4 * mask}[head]
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    with torch.no_grad():
        found = model.eval()(images)
    for one, image in zip(found, images, strict=True):
        assert len(one["boxes"]) and set(one["labels"].tolist()) <= {1, 2, 3}
        assert ("masks" in one) == mask
        if mask:
            assert one["masks"].shape == (len(one["boxes"]), 1, *image.shape[1:])


def test_the_first_layers_are_the_backbones():
    backbone = build_backbone("resnet18").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
        for head, stage in (("c4", "layer3"), ("fpn", "layer4")):
            settings = DetectConfig(head=head)
            model = build_detector(backbone, settings, 2, *CONSTANTS).eval()
            body = model.backbone if head == "c4" else model.backbone.body
            maps = body(images)
            last = model.roi_heads.box_head.layer4(maps["0"]) if head == "c4" else maps["3"]
            assert torch.equal(last.mean(dim=(2, 3)), expected), stage
            assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_shared_head_is_torchvisions_where_nothing_is_random():
    """In evaluation, the heads' detections and masks are those of torchvision's own forward."""
    from torchvision.models.detection.roi_heads import RoIHeads

    class Pooled(nn.Module):
        def __init__(self, predictor):
            super().__init__()
            self.predictor = predictor

        def forward(self, x):
            return self.predictor(x.mean(dim=(2, 3)))

    backbone = build_backbone("timm:resnet18", channels=[8, 16, 16, 16])
    settings = DetectConfig(mask=True, min_sizes=[64])
    torch.manual_seed(0)
    model = build_detector(backbone, settings, 2, *CONSTANTS).eval()
    heads = model.roi_heads
    heads.score_thresh = 0.0
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    with torch.no_grad():
        found = model(images)
        heads.mask_roi_pool, heads.mask_head = heads.box_roi_pool, heads.box_head
        heads.box_predictor = Pooled(heads.box_predictor)
        heads.__class__ = RoIHeads
        expected = model(images)
    assert len(found[0]["boxes"])
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
