"""The image towers of CLIP and its successors (open_clip) with a linear head; VLPL's transformer backbone is one."""

from functools import partial

from torch import Tensor, nn

from models.backbone import OFFLINE, Backbone, Float32Linear
from models.clip import clip_file, create_clip, model_config, normalisation
from models.weights import load_weights
from util.errors import UserError

NAME, TAG = "ViT-L-14-336-quickgelu", "openai"  # the teacher's default too


class TowerWithHead(nn.Module):
    def __init__(self, tower: nn.Module, width: int, num_labels: int) -> None:
        super().__init__()
        self.tower, self.head = tower, Float32Linear(width, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L): the projected image embedding (B, D), then a linear head."""
        return self.head(self.tower(images))


def clip_tower(name: str, num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """The image tower of an open_clip model, `NAME`, `NAME:TAG` or `FILE.json`, with a new head of num_labels.

    weights  a local file, of the tower or of a whole CLIP, instead of the tag's
    An image_size other than the default of the model resamples the position embeddings.
    """
    name, _, tag = name.partition(":")
    if pretrained and not weights and not tag:
        raise UserError(f"clip:{name} names no weights; take clip:{name}:TAG with a tag of open_clip, or {OFFLINE}")
    file = clip_file(name, tag, f"clip:{name}:{tag}", OFFLINE) if pretrained and not weights else None
    clip = create_clip(name, file, image_size)
    network = TowerWithHead(clip.visual, model_config(name)["embed_dim"], num_labels)
    if weights:
        load_weights(network, weights, head=("head.",))
    return Backbone(network, *normalisation(name, weights or tag), heads=("head",))


vit_clip = partial(clip_tower, f"{NAME}:{TAG}")  # ViT-L/14 at 336 px with OpenAI's weights
