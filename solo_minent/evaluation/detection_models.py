"""Faster and Mask R-CNN of torchvision on a ResNet that was trained elsewhere.

FPN: https://arxiv.org/abs/1612.03144; its heads as in TWIST's detectron2 configuration. C4: the
detector of https://arxiv.org/abs/1512.03385 (Faster R-CNN on the third stage, the fourth one being
its head), with the batch norm behind the fourth stage that MoCo's configuration adds. Region
proposals, samplers, losses and their constants are torchvision's; sizes that differ between the
two kinds of detector (proposals before NMS, pooling) are detectron2's.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align

from solo_minent.errors import UserError
from solo_minent.schema import DetectConfig

SIZES = (32, 64, 128, 256, 512)  # of anchors, in pixels of the resized image
RATIOS = (0.5, 1.0, 2.0)
STAGES = ("layer1", "layer2", "layer3", "layer4")


def build_detector(
    backbone: nn.Module,
    settings: DetectConfig,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> GeneralizedRCNN:
    """A detector on a copy of the backbone; every layer trains, batch norms included.

    In training it takes lists of images and targets and returns a dict of losses, in evaluation it
    takes images and returns a list of dicts: boxes, labels, scores and, with `settings.mask`,
    masks (torchvision.models.detection).

    Args:
        backbone: a ResNet of torchvision or timm.
        settings: head, mask and sizes are used.
        num_classes: without the background.
        mean, std: of each channel, for pixels in [0, 1].

    Raises:
        UserError: the backbone is another architecture.
    """
    check_stages(backbone)
    backbone = copy.deepcopy(backbone).requires_grad_(True)
    sizes = (tuple(settings.min_sizes), settings.max_size, list(mean), list(std))
    build = _c4 if settings.head == "c4" else _fpn
    return build(backbone, settings, num_classes + 1, sizes)


def check_stages(backbone: nn.Module) -> None:
    """Raises UserError unless it is a ResNet whose children, called in turn, are its stages."""
    import timm.models.resnet

    if not isinstance(backbone, (ResNet, timm.models.resnet.ResNet)):
        raise UserError(
            f"backbone has no stages to detect on: {type(backbone).__name__}. Detectors take the "
            "layer1 … layer4 of a ResNet of torchvision or timm. Evaluate another target."
        )


def _fpn(backbone: nn.Module, settings: DetectConfig, classes: int, sizes: tuple) -> MaskRCNN:
    norm = nn.BatchNorm2d
    channels, _ = _shapes(backbone, STAGES)
    names = {stage: str(level) for level, stage in enumerate(STAGES)}
    body = BackboneWithFPN(backbone, names, channels, 256, norm_layer=norm)
    common = {
        "min_size": sizes[0],
        "max_size": sizes[1],
        "image_mean": sizes[2],
        "image_std": sizes[3],
    }
    common |= {"rpn_post_nms_top_n_train": 1000}
    if settings.box_head == "4conv1fc":
        common["box_head"] = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm)
    if not settings.mask:
        return FasterRCNN(body, classes, **common)
    return MaskRCNN(body, classes, mask_head=MaskRCNNHeads(256, (256,) * 4, 1, norm), **common)


def _c4(backbone: nn.Module, settings: DetectConfig, classes: int, sizes: tuple) -> GeneralizedRCNN:
    (inner, outer), (stride, _) = _shapes(backbone, STAGES[2:])
    head = nn.Sequential(OrderedDict(layer4=backbone.layer4, norm=nn.BatchNorm2d(outer)))
    body = IntermediateLayerGetter(backbone, {"layer3": "0"})
    anchors = AnchorGenerator((SIZES,), (RATIOS,))
    proposals = RegionProposalNetwork(
        anchors,
        RPNHead(inner, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 12000, "testing": 6000},
        post_nms_top_n={"training": 2000, "testing": 1000},
        nms_thresh=0.7,
    )
    heads = StageRoIHeads(
        AlignedPool(14, 1 / stride),
        head,
        FastRCNNPredictor(outer, classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_predictor=MaskRCNNPredictor(outer, 256, classes) if settings.mask else None,
    )
    return GeneralizedRCNN(body, proposals, heads, GeneralizedRCNNTransform(*sizes))


def _shapes(backbone: nn.Module, stages: Sequence[str]) -> tuple[list[int], list[int]]:
    """Channels and strides of stages, measured on an image of zeros."""
    body = IntermediateLayerGetter(backbone, {stage: stage for stage in stages})
    training, size = backbone.training, 256
    parameter = next(backbone.parameters())
    with torch.no_grad():
        backbone.eval()
        maps = body(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
        backbone.train(training)
    shapes = [maps[stage].shape for stage in stages]
    return [shape[1] for shape in shapes], [size // shape[2] for shape in shapes]


class AlignedPool(nn.Module):
    """RoIAlign without the offset of half a pixel, each bin sampled as densely as it is large.

    Called with the maps {"0": (B, C, H, W)}, the boxes of each image in pixels of the resized image
    and their sizes; returns (boxes, C, size, size).
    """

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        return roi_align(features["0"], boxes, self.size, self.scale, aligned=True)


class StageRoIHeads(RoIHeads):
    """Box and mask heads that share a stage of the ResNet, as in Mask R-CNN's C4 variant.

    torchvision's own would run it twice in training, once for each head, and its batch norms would
    see two kinds of batches.
    """

    def has_mask(self) -> bool:
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections (evaluation) and losses (training), the other one being empty."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        x = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(x.mean(dim=(2, 3)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        found = [
            {"boxes": b, "labels": y, "scores": s}
            for b, y, s in zip(boxes, labels, scores, strict=True)
        ]
        if self.has_mask():
            x = self.box_head(self.box_roi_pool(features, boxes, image_shapes))
            masks = maskrcnn_inference(self.mask_predictor(x), labels)
            found = [{**one, "masks": mask} for one, mask in zip(found, masks, strict=True)]
        return found, {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        x = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(x.mean(dim=(2, 3)))
        classifier, regression = fastrcnn_loss(logits, deltas, labels, wanted)
        losses = {"loss_classifier": classifier, "loss_box_reg": regression}
        if self.has_mask():
            objects = [label > 0 for label in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(x[torch.cat(objects)]),
                [boxes[rows] for boxes, rows in zip(proposals, objects, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [index[rows] for index, rows in zip(matched, objects, strict=True)],
            )
        return losses
