"""open_clip models (Ilharco et al.) by name, by configuration file, with weights by tag or by file."""

import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from torch import nn

from models.weights import check_kinds, hub_file, read_weights, torchvision_file
from util.errors import UserError, describe_error, quiet
from util.files import file_digest, local_file, open_regular, read_json

Size = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=2**10)]


class VisionConfig(msgspec.Struct):
    image_size: Size | list[Size] = 224
    layers: Layers | list[Layers] = 12
    width: Size = 768
    head_width: Size = 64
    patch_size: Size | list[Size] | None = None


class TextConfig(msgspec.Struct):
    context_length: Size = 77
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=2**22)] = 49408
    width: Size = 512
    heads: Size = 8
    layers: Layers = 12


class ModelConfig(msgspec.Struct):
    """What must hold of an open_clip model config, which may have more; where open_clip has a default, any here."""

    embed_dim: Size
    vision_cfg: VisionConfig
    text_cfg: TextConfig


def config_name(name: str, asked: str = "--teacher ") -> str:
    """open_clip's name of a model; a FILE.json is registered under its stem. Raises UserError for an unknown one.

    asked  what stands before the name on the command line
    """
    import open_clip

    if name.endswith(".json"):
        path = local_file(name)
        if path is None:
            raise UserError(f"{asked}{name}: no such file")
        read_json(path, ModelConfig, "it must be an open_clip model config")
        open_clip.add_model_config(path)
        return path.stem
    if name not in open_clip.list_models():
        close = [known for known in open_clip.list_models() if known.startswith(name[:8])]
        raise UserError(
            f"{asked}{name} is no open_clip model{f'; did you mean {chr(44).join(close[:6])}' if close else ''}"
        )
    return name


def tower_file(name: str) -> Path | None:
    """The FILE.json that the backbone clip:FILE.json is built from; None for every other backbone."""
    return local_file(name.removeprefix("clip:")) if name.startswith("clip:") and name.endswith(".json") else None


def tower_digest(name: str) -> str | None:
    return file_digest(path) if (path := tower_file(name)) else None


def tower_config(name: str) -> dict | None:
    """The content of that file."""
    return read_json(path) if (path := tower_file(name)) else None


def clip_file(name: str, weights: str, models: str, otherwise: str) -> Path:
    """The file of a model's weights, a local file or an open_clip tag, downloaded on first use.

    Raises UserError where there is none, and where a tag was trained with the other GELU than the model has: such a
    pair runs, and scores a few points lower.
    """
    from open_clip import get_model_config, list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    if path := local_file(weights):
        return path
    name = config_name(name)
    about = get_pretrained_cfg(name, weights)
    if not about:
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"weights {weights!r} of {name} are neither a file nor a tag of open_clip (its tags: {tags})")
    if bool(get_model_config(name).get("quick_gelu")) != bool(about.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise UserError(f"weights {weights!r} were trained with the other GELU than {name} has; take --teacher {other}")
    if about.get("hf_hub"):
        repository, file = os.path.split(about["hf_hub"])
        names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        if file.endswith((".bin", ".pt", ".pth")):
            names.insert(0, os.path.splitext(file)[0] + ".safetensors")
        return hub_file(repository, names, models, otherwise)
    return torchvision_file(about["url"], models, otherwise)


def create_clip(name: str, file: Path | None, image_size: int | None = None) -> nn.Module:
    """An open_clip model on the CPU in float32, with the weights of `file` (None: random ones)."""
    import open_clip

    name = config_name(name)
    if file is None:
        logging.disable(logging.WARNING)  # open_clip warns that random weights are random
        try:
            return open_clip.create_model(name, force_image_size=image_size)
        finally:
            logging.disable(logging.NOTSET)
    open_regular(file).close()  # says so where it is none
    try:
        with quiet():
            model = open_clip.create_model(name, pretrained=str(file), force_image_size=image_size)
        check_kinds(read_weights(file), model.state_dict())
        return model
    except UserError:
        raise
    except Exception as error:  # torch, safetensors and open_clip each raise their own
        read_weights(file)  # says so if the file itself is bad
        raise UserError(f"{file} does not fit the model {name} ({describe_error(error)})") from None


def embedding_size(name: str) -> int:
    """D, the width of image and text features."""
    from open_clip import get_model_config

    return get_model_config(config_name(name))["embed_dim"]


def own_size(name: str) -> int:
    """The image size that a model is made for, in pixels."""
    from open_clip import get_model_config

    return int(np.max(get_model_config(config_name(name))["vision_cfg"]["image_size"]))


def normalisation(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels that a tag was trained on; for a file those of the model's tags, where all have the
    same (as SigLIP's have), else OpenAI's."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    def of_tag(tag: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        about = get_pretrained_cfg(name, tag)
        return tuple(about.get("mean", OPENAI_DATASET_MEAN)), tuple(about.get("std", OPENAI_DATASET_STD))

    name = config_name(name)
    of_tags = {of_tag(tag) for tag in list_pretrained_tags_by_model(name)}
    return of_tags.pop() if local_file(weights) and len(of_tags) == 1 else of_tag(weights)
