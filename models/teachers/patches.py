"""Features of the patches of an image, without training, from a CLIP that was trained on whole images.

ITACLIP replaces the attention of CLIP's last block, so that each patch attends to similar patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.errors import UserError

EARLIER = (7 / 12, 8 / 12, 10 / 12)  # the depth of the blocks that help the last one: 7, 8 and 10 of ViT-B's twelve


def patch_features(tower: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, S, S) network input -> (B, P, D) features of the patches, in the space of the feature of the whole image.

    The last block's attention is the mean of its `attention` and of the mean over three earlier blocks. It is added to
    the residual, the last MLP is left out, and the tower's last norm and projection follow.
    Raises UserError if the tower is not a ViT of open_clip.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None or tower.proj is None:
        raise UserError(
            f"--teacher-views patches needs a teacher whose image tower is open_clip's own ViT, such as ViT-B-16, not "
            f"a {type(tower).__name__}; take --teacher-views tiles"
        )
    blocks = tower.transformer.resblocks
    earlier = [max(1, round(depth * len(blocks))) - 1 for depth in EARLIER]
    tokens, seen = tower._embeds(images), {}
    for number, block in enumerate(blocks):
        if number in earlier or number == len(blocks) - 1:
            seen[number] = attention(block, tokens)
        if number < len(blocks) - 1:
            tokens = block(tokens)
    weights = (seen[len(blocks) - 1] + sum(seen[number] for number in earlier) / len(earlier)) / 2
    last, values = blocks[-1], heads(blocks[-1], tokens, 2)
    mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
    tokens = tokens + last.ls_1(last.attn.out_proj(mixed))
    return tower.ln_post(tokens)[:, 1:] @ tower.proj


def attention(block: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T, W) -> (B, H, T, T): softmax(q q^T / sqrt d) + softmax(k k^T / sqrt d) of each head."""
    vectors = [heads(block, tokens, part) for part in (0, 1)]
    scaled = [part / part.shape[3] ** 0.25 for part in vectors]  # float16 may not hold the squares of unscaled ones
    return sum(torch.softmax(part @ part.transpose(2, 3), dim=3) for part in scaled)


def heads(block: nn.Module, tokens: Tensor, part: int) -> Tensor:
    """(B, T, W) -> (B, H, T, d): the queries (0), keys (1) or values (2) of a block's attention."""
    attn = block.attn
    weight, bias = attn.in_proj_weight.chunk(3)[part], attn.in_proj_bias.chunk(3)[part]
    return F.linear(block.ln_1(tokens), weight, bias).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
