"""CLIP's image tower, fine-tuned with a linear head: VLPL's transformer backbone."""

from torch import Tensor, nn

from models.backbone import OFFLINE, Backbone, Float32Linear
from models.clip import clip_file, create_clip, normalisation
from models.weights import load_weights

NAME, TAG = "ViT-L-14-336-quickgelu", "openai"  # the teacher's default too


class TowerWithHead(nn.Module):
    def __init__(self, tower: nn.Module, width: int, num_labels: int) -> None:
        super().__init__()
        self.tower, self.head = tower, Float32Linear(width, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L): the projected image embedding (B, D), then a linear head."""
        return self.head(self.tower(images))


def vit_clip(num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """ViT-L/14 at 336 px with OpenAI's weights; another image_size resamples the position embeddings."""
    file = clip_file(NAME, TAG, "vit_clip", OFFLINE) if pretrained and not weights else None
    clip = create_clip(NAME, file, image_size)
    network = TowerWithHead(clip.visual, clip.visual.output_dim, num_labels)
    if weights:
        load_weights(network, weights, head=("head.",), rename=("visual.", "tower."))  # also a whole CLIP
    return Backbone(network, *normalisation(NAME, TAG), heads=("head",))
