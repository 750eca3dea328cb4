"""What a backbone is to the rest of the project."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor, nn

from datasets.images import to_input
from util.errors import UserError

Channels = tuple[float, ...]  # a number for each of red, green and blue
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Float32Linear(nn.Linear):
    """A head that computes in float32 under autocast: logits rounded to bf16 tie, and ties cost average precision."""

    def forward(self, features: Tensor) -> Tensor:
        return in_float32(super().forward, features)


def in_float32(layer: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The output of a layer, in float32 under autocast too."""
    if features.is_meta or torch.compiler.is_exporting():  # neither that device nor a graph for export knows autocast
        return layer(features)
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.float())


def starts_as_linear(head: nn.Linear) -> bool:
    """Whether a head's weights may come from nn.Linear's initialisation, uniform within 1 / sqrt(D) of 0. Some
    of timm's families initialise a head for a few labels ten times wider, and learn less in their first epochs."""
    if head.weight.is_meta:  # shapes alone
        return True
    bound = head.in_features**-0.5
    as_wide = 0.8 < head.weight.std().item() / (bound / 3**0.5) < 1.25  # the deviation of so few numbers is not exact
    return as_wide and head.weight.abs().max().item() <= bound


class Backbone(nn.Module):
    """A network from pixels to logits, with the normalisation that it expects.

    mean, std  (3, 1, 1) float buffers, of pixels in [0, 1]
    heads      names of the classifier's modules inside the network
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        heads: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.heads = network, tuple(heads)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def head_parameters(self) -> list[nn.Parameter]:
        return [parameter for head in self.heads for parameter in self.network.get_submodule(head).parameters()]

    def to_input(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) uint8 -> the same as float, normalised; flip: (B,) bool, which of them to mirror."""
        return to_input(images, self.mean, self.std, flip)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float, normalised -> (B, L) logits."""
        return self.network(images)


def check_known(library: str, name: str, known: Sequence[str]) -> None:
    """Raises UserError, which lists similar names, unless a library has the model."""
    if name not in known:
        close = get_close_matches(name, known, n=6)
        raise UserError(f"{library} has no model {name!r}" + (f"; did you mean {', '.join(close)}" if close else ""))


def check_finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values. Raises UserError if one is not finite."""
    if not np.isfinite(values).all():
        raise UserError(f"{what} are not finite; take --precision float32, or a different model")
    return values


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> torch.Size:
    """The shape of a module's output in training mode, computed on the meta device without numbers."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with torch.no_grad():
        return torch.func.functional_call(module.train(), shapes, torch.empty(shape, device="meta")).shape
