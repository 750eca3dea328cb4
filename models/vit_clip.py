"""The image towers of CLIP and its successors (open_clip) with a linear head; VLPL's transformer backbone is one."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.backbone import OFFLINE, Backbone, Float32Linear
from models.clip import clip_file, create_clip, model_config, normalisation
from models.weights import load_weights

NAME, TAG = "ViT-L-14-336-quickgelu", "openai"  # the teacher's default too


def clip_tower(name: str, num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """The image tower of an open_clip model, `NAME`, `NAME:TAG` or `FILE.json`, with a linear head on its embedding.

    weights  a local file, of the tower or of a whole CLIP, instead of the tag's
    An image_size other than the default of the model resamples the position embeddings.
    """
    name, _, tag = name.partition(":")
    file = clip_file(name, tag, f"clip:{name}:{tag}", OFFLINE) if pretrained and not weights else None
    clip, width = create_clip(name, file, image_size), model_config(name)["embed_dim"]
    network = nn.Sequential(OrderedDict(tower=clip.visual, head=Float32Linear(width, num_labels)))
    if weights:
        load_weights(network, weights, head=("head.",))
    return Backbone(network, *normalisation(name, weights or tag), heads=("head",))


vit_clip = partial(clip_tower, f"{NAME}:{TAG}")  # ViT-L/14 at 336 px with OpenAI's weights
