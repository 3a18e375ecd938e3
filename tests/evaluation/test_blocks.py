"""The last blocks of a ViT against timm's own intermediate outputs."""

import pytest
import torch

from solo_minent.backbones import build_backbone
from solo_minent.errors import UserError
from solo_minent.evaluation.blocks import LastBlocks

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 5, "num_heads": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return build_backbone("timm:vit_tiny_patch16_224", **SMALL).eval()


@torch.no_grad()
def test_tokens_are_those_of_the_blocks_through_the_final_norm(vit):
    images = torch.randn(3, 3, 16, 16)
    torch.nn.init.normal_(vit.norm.weight)  # a norm that one would miss
    tokens, kept = {}, []
    for index, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: tokens.update({index: out}))
    features = LastBlocks(vit, 4)(images)
    kept = [vit.norm(tokens[index])[:, 0] for index in (1, 2, 3, 4)]
    assert torch.equal(features, torch.cat(kept, dim=1))
    assert features.shape == (3, LastBlocks(vit, 4).num_features) == (3, 96)
    assert torch.allclose(features[:, 72:], vit(images), atol=1e-6)
    timm = vit.get_intermediate_layers(images, 4, return_prefix_tokens=True, norm=True)
    assert torch.allclose(features, torch.cat([prefix[:, 0] for _, prefix in timm], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "count", "message"),
    [
        ("resnet18", {}, 4, "backbone has no blocks: ResNet"),
        ("timm:vit_tiny_patch16_224", SMALL, 6, "backbone has fewer blocks: 5 in Vision.*, 6 were"),
        (
            "timm:vit_tiny_patch16_224",
            SMALL | {"class_token": False, "global_pool": "avg"},
            2,
            "backbone has no class token",
        ),
        (
            "timm:vit_tiny_patch16_224",
            SMALL | {"class_token": False, "global_pool": "avg", "reg_tokens": 4},
            2,
            "backbone has no class token",
        ),
    ],
)
def test_backbones_without_such_blocks(name, kwargs, count, message):
    with pytest.raises(UserError, match=message):
        LastBlocks(build_backbone(name, **kwargs), count)
