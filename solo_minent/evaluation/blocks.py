"""The last blocks of a vision transformer as features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from solo_minent.errors import UserError


class LastBlocks(nn.Module):
    """Class tokens of the last blocks of a timm ViT, side by side: (B, 3, H, W) -> (B, count * D).

    Each goes through the final norm: the protocol of DINO (arXiv 2104.14294) and TWIST. The last
    columns are the backbone's own features where it pools by the class token.

    Args:
        backbone: a timm model with `blocks`, `forward_intermediates` and a class token.
        count: of blocks.

    Raises:
        UserError: it has no blocks, no class token or fewer blocks.
    """

    def __init__(self, backbone: nn.Module, count: int) -> None:
        super().__init__()
        name, fix = type(backbone).__name__, "Set evaluation.linear.blocks=0."
        if not hasattr(backbone, "forward_intermediates") or not hasattr(backbone, "blocks"):
            raise UserError(
                f"backbone has no blocks: {name}. The class tokens of the last {count} blocks are "
                f"those of a ViT of timm. {fix}"
            )
        if getattr(backbone, "cls_token", None) is None:  # registers are prefix tokens as well
            raise UserError(
                f"backbone has no class token: {name}. It stands before the tokens of the patches "
                f"in a ViT. {fix}"
            )
        if count > len(backbone.blocks):
            raise UserError(
                f"backbone has fewer blocks: {len(backbone.blocks)} in {name}, {count} were asked "
                f"for. {fix}"
            )
        self.backbone, self.count = backbone, count
        self.num_features = count * backbone.num_features

    def forward(self, images: Tensor) -> Tensor:
        taken = self.backbone.forward_intermediates(
            images,
            indices=self.count,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.cat([prefix[:, 0] for _, prefix in taken], dim=1)
