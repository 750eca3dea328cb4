"""Backbones by name: plain functions (num_labels, image_size, pretrained, weights) -> Backbone.

They import their libraries themselves, so a run loads only the one that it needs. `load` gives a run's trained model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from models.backbone import Backbone, check_known, output_shape
from models.boostlu import use_boostlu
from models.clip import clip_tower, config_name, own_size, vit_clip
from models.networks import resnet50, timm_any
from models.saved import Predictor, load
from util.errors import UserError, describe_error


@dataclass(frozen=True)
class Architecture:
    """make: builds the backbone. settings: common settings whose defaults it changes."""

    make: Callable[..., Backbone]
    settings: dict[str, object] = field(default_factory=dict)


BACKBONES = {
    "resnet50": Architecture(resnet50),
    "vit_clip": Architecture(vit_clip, dict(batch_size=6, image_size=336)),  # VLPL's batch; differs: 448 resized to 336
    "convnext_xlarge_22k": Architecture(partial(timm_any, "convnext_xlarge.fb_in22k")),
    "convnext_xlarge_1k": Architecture(partial(timm_any, "convnext_xlarge.fb_in22k_ft_in1k")),
}
FAMILIES = {"timm:": timm_any, "clip:": clip_tower}  # NAME of that library
HEADS = ("linear", "boostlu")
FEATURES = "features"  # the backbone of --features: computed by a different program
ALIASES = {"clip_vision": "vit_clip"}  # the published code's other name

__all__ = [
    "ALIASES", "BACKBONES", "FEATURES", "HEADS", "Backbone", "Predictor", "build", "check_head", "check_name", "load",
    "settings_of",
]  # fmt: skip


def check_name(name: str) -> None:
    """Raises UserError for a name that is neither in BACKBONES nor a timm:NAME or clip:NAME that the library has."""
    if name.startswith("clip:"):
        config_name(name.split(":")[1])
    elif name.startswith("timm:"):
        import timm

        architecture, _, tag = name.removeprefix("timm:").partition(".")
        known = timm.list_pretrained(f"{architecture}.*") if tag else timm.list_models()
        if tag or not timm.is_model(architecture):  # which also knows deprecated names
            check_known("timm", name.removeprefix("timm:"), known or timm.list_pretrained())
    elif name not in BACKBONES:
        kind = "the head of a run on given features (-d photos or --features)" if name == FEATURES else "unknown"
        known = f"{', '.join(BACKBONES)}, timm:NAME and clip:NAME:TAG"
        raise UserError(f"the model {name!r} is {kind}; photographs are read by {known}")


def settings_of(name: str) -> dict[str, object]:
    """Common settings whose defaults a backbone changes."""
    if name.startswith("clip:"):
        return dict(image_size=own_size(name.split(":")[1]))
    return BACKBONES[name].settings if name in BACKBONES else {}


def check_head(name: str, head: str, image_size: int) -> None:
    """Raises UserError if the head needs feature maps and the backbone has none. Computes shapes alone."""
    if head != "linear":
        with torch.device("meta"):
            build(name, 1, image_size=image_size, pretrained=False, head=head)


def build(
    name: str,
    num_labels: int,
    *,
    image_size: int,
    pretrained: bool = True,
    weights: str | None = None,
    head: str = "linear",
    smallest_batch: int = 2,
) -> Backbone:
    """A backbone, on the CPU in float32.

    pretrained      start from the published weights
    weights         a local checkpoint instead
    head            one of HEADS
    smallest_batch  images of the smallest training step, which batch norm may refuse
    Raises UserError if the weights are neither cached nor downloadable, or do not fit.
    """
    check_name(name)
    make = BACKBONES[name].make if name in BACKBONES else partial(FAMILIES[name[:5]], name[5:])
    try:
        model = make(num_labels, image_size=image_size, pretrained=pretrained, weights=weights)
        if head == "boostlu":
            use_boostlu(model, name, num_labels, image_size)
        output_shape(model, (smallest_batch, 3, image_size, image_size))  # what does not fit fails now, not later
    except (AssertionError, RuntimeError, ValueError) as error:  # what timm, open_clip and torch raise about sizes
        raise UserError(
            f"{name} does not take a batch of {smallest_batch} images of {image_size} x {image_size} pixels "
            f"(--batch-size, --image-size): {describe_error(error)}"
        ) from None
    return model
