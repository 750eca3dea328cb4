"""CLIP and its successors in open_clip (Ilharco et al.): by name or configuration file, with weights by tag or file."""

import logging
from collections import OrderedDict
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from models.backbone import Backbone, Channels, Float32Linear, check_known
from models.weights import OFFLINE, file_identity, hub_file, load_state, load_weights, read_weights, renamed
from util.errors import UserError
from util.files import local_file, read_json, reading

DEFAULT, DEFAULT_WEIGHTS = "ViT-L-14-336-quickgelu", "openai"  # VLPL's teacher and transformer backbone
ModelConfig = msgspec.defstruct("ModelConfig", [("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)])


def config_name(name: str) -> str:
    """open_clip's name of a model; a FILE.json is registered under its stem. Raises UserError for an unknown one."""
    import open_clip

    if name.endswith(".json"):
        path = local_file(name) or Path(name)
        read_json(path, ModelConfig, "it must be an open_clip model config")
        open_clip.add_model_config(path)
        return path.stem
    check_known("open_clip", name, open_clip.list_models())
    return name


def model_config(name: str) -> dict:
    """open_clip's config of a model."""
    from open_clip import get_model_config

    return get_model_config(config_name(name))


def own_size(name: str) -> int:
    """The image size that a model is made for, in pixels."""
    return int(np.max(model_config(name)["vision_cfg"]["image_size"]))


def backbone_identity(name: str) -> object:
    """How identities and keys of caches name a backbone: by its name, or for clip:FILE.json by that file."""
    return file_identity(name.removeprefix("clip:")) if name.endswith(".json") else name


def tower_config(name: str) -> dict | None:
    """The content of the FILE.json of a backbone clip:FILE.json; None for every other backbone."""
    file = name.removeprefix("clip:")
    return read_json(local_file(file) or file) if file.endswith(".json") else None


def clip_file(name: str, weights: str, otherwise: str = OFFLINE) -> Path:
    """The file of a model's weights, a local file or an open_clip tag, downloaded on first use.

    otherwise  an alternative for users without internet
    Raises UserError if there is none, or if a tag was trained with a different GELU than the model has: such a pair
    would run and score a few points lower.
    """
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    if path := local_file(weights):
        return path
    model, config, name = f"clip:{name}:{weights}", model_config(name), config_name(name)
    if not (tag := get_pretrained_cfg(name, weights)):
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        fault = f"the weights {weights!r} are neither a file nor a tag" if weights else "give weights: clip:NAME:TAG"
        raise UserError(f"{name}: {fault}; open_clip's tags of this model: {tags}")
    if bool(config.get("quick_gelu")) != bool(tag.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise UserError(f"weights {weights!r} were trained with a different GELU than {name}; take {other}")
    repository, _, file = tag["hf_hub"].rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if file.endswith((".bin", ".pt", ".pth")):
        names.insert(0, str(Path(file).with_suffix(".safetensors")))
    return hub_file(repository, names, model, otherwise)


def create_clip(name: str, file: Path | None, image_size: int | None = None) -> nn.Module:
    """An open_clip model in float32, with the weights of `file` (None: random ones)."""
    import open_clip
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    is_timm = "timm_model_name" in model_config(name)["vision_cfg"]
    size, device = None if is_timm and file else image_size, torch.get_default_device()
    with reading(name, "a model that open_clip can build"):
        logging.disable(logging.WARNING)  # open_clip warns that random weights are random
        try:
            model = open_clip.create_model(config_name(name), force_image_size=size, device=device)
        finally:
            logging.disable(logging.NOTSET)
    if file is not None:
        state = renamed(read_weights(file), model.state_dict(), file)
        state = convert_state_dict(model, state)
        if not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        resize_pos_embed(state, model)
        load_state(model, state, file)
        if is_timm and image_size:
            model.visual.set_input_size(image_size)
    return model


def normalisation(name: str, weights: str) -> tuple[Channels, Channels]:
    """Mean and std of the pixels that a tag was trained on; for a file those of the model's tags if all have
    the same (as SigLIP's have), else OpenAI's."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    def of_tag(tag: str) -> tuple[Channels, Channels]:
        config = get_pretrained_cfg(name, tag)
        return tuple(config.get("mean", OPENAI_DATASET_MEAN)), tuple(config.get("std", OPENAI_DATASET_STD))

    name = config_name(name)
    of_tags = {of_tag(tag) for tag in list_pretrained_tags_by_model(name)}
    return of_tags.pop() if local_file(weights) and len(of_tags) == 1 else of_tag(weights)


def clip_tower(name: str, num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """The image tower of an open_clip model, `NAME`, `NAME:TAG` or `FILE.json`, with a linear head on its embedding.

    weights  a local file, of the tower or of a whole CLIP, instead of the tag's
    An image_size other than the default of the model resamples the position embeddings.
    """
    name, _, tag = name.partition(":")
    file = clip_file(name, tag) if pretrained and not weights else None
    clip, width = create_clip(name, file, image_size), model_config(name)["embed_dim"]
    network = nn.Sequential(OrderedDict(tower=clip.visual, head=Float32Linear(width, num_labels)))
    if weights:
        load_weights(network, weights, head=("head.",))
    return Backbone(network, *normalisation(name, weights or tag), heads=("head",))


vit_clip = partial(clip_tower, f"{DEFAULT}:{DEFAULT_WEIGHTS}")  # ViT-L/14 at 336 px with OpenAI's weights
