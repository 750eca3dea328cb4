"""Backbones by name: plain functions (num_labels, image_size, pretrained, weights) -> Backbone.

Each file imports its library inside its function, so a run loads the one that it needs.
"""

from functools import partial

import torch

from cli import UserError
from config import Config
from models.backbone import Backbone
from models.resnet import resnet50
from models.timm_any import timm_any
from models.vit_clip import vit_clip
from storage import why

BACKBONES = {
    "resnet50": resnet50,
    "vit_clip": vit_clip,
    "convnext_xlarge_22k": partial(timm_any, "convnext_xlarge.fb_in22k"),
    "convnext_xlarge_1k": partial(timm_any, "convnext_xlarge.fb_in22k_ft_in1k"),
}

__all__ = ["BACKBONES", "Backbone", "build", "check_name"]


def check_name(name: str) -> None:
    """Raises UserError for a name that is neither of BACKBONES nor timm:NAME with a model of timm."""
    if name in BACKBONES:
        return
    if name.startswith("timm:"):
        import timm

        if timm.is_model(name.removeprefix("timm:")):
            try:
                timm.get_pretrained_cfg(name.removeprefix("timm:"))
            except (RuntimeError, ValueError, KeyError) as error:  # a tag that the architecture does not have
                raise UserError(f"timm has no model {name.removeprefix('timm:')!r}: {why(error)}") from None
            return
        close = timm.list_models(f"*{name.removeprefix('timm:').split('.')[0]}*")[:6]
        raise UserError(
            f"timm has no model {name.removeprefix('timm:')!r}" + (f"; it has {', '.join(close)}" if close else "")
        )
    raise UserError(f"unknown backbone {name!r}; there are {', '.join(BACKBONES)}, and timm:NAME")


def build(config: Config, num_labels: int, smallest_batch: int = 2) -> Backbone:
    """The backbone of a run, on the CPU in float32.

    smallest_batch  images of the smallest training step, which batch norm may refuse
    Raises UserError where its weights are neither here nor to be had, or do not fit.
    """
    check_name(config.model)
    make = BACKBONES.get(config.model) or partial(timm_any, config.model.removeprefix("timm:"))
    try:
        model = make(num_labels, image_size=config.image_size, pretrained=config.pretrained, weights=config.weights)
        _try_shapes(model, (smallest_batch, 3, config.image_size, config.image_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # what timm, open_clip and torch say of sizes
        raise UserError(
            f"{config.model} cannot be trained with --image-size {config.image_size} and a batch of {smallest_batch} "
            f"images: {why(error)}"
        ) from None
    return model


def _try_shapes(model: Backbone, shape: tuple[int, ...]) -> None:
    """One training step's forward pass of shapes alone, on the meta device: what does not fit fails now, not later."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with torch.no_grad():
        torch.func.functional_call(model.train(), shapes, torch.empty(shape, device="meta"))
