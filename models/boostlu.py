"""BoostLU: Kim et al., "Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification",
CVPR 2023, arXiv 2304.01804: a classifier head for any backbone that makes feature maps.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.backbone import Backbone, in_float32, output_shape
from util.errors import UserError

BOOST = 5.0  # Kim et al. 2023


class BoostLU(nn.Conv2d):
    """Class activation maps, whose positive activations are boosted before they are averaged.

    It computes in float32 under autocast, as Float32Linear does.
    """

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__(width, num_labels, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) feature maps -> (B, L) logits."""
        activations = in_float32(super().forward, maps)
        return torch.where(activations > 0, BOOST * activations, activations).mean(dim=(2, 3))


class MapsWithHead(nn.Module):
    """maps: (B, 3, S, S) -> (B, C, H, W), or (B, H, W, C) if channels_last."""

    def __init__(self, maps: nn.Module, head: BoostLU, channels_last: bool) -> None:
        super().__init__()
        self.maps, self.head, self.channels_last = maps, head, channels_last

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images)
        return self.head(maps.permute(0, 3, 1, 2) if self.channels_last else maps)


def no_maps(name: str) -> UserError:
    return UserError(f"--head boostlu needs feature maps, and {name} makes none; take a convolutional backbone")


def use_boostlu(model: Backbone, name: str, num_labels: int, image_size: int) -> None:
    """Replace a backbone's pooling and linear head by BoostLU. Raises UserError if it makes no maps."""
    network = model.network
    if hasattr(network, "reset_classifier"):  # timm's
        network.reset_classifier(0, "")
    elif hasattr(network, "avgpool"):  # torchvision's ResNet
        network = nn.Sequential(OrderedDict(list(network.named_children())[:-2]))
    channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
    shape = output_shape(network, (2, 3, image_size, image_size))
    if len(shape) != 4:
        raise no_maps(name)
    head = BoostLU(shape[3 if channels_last else 1], num_labels)
    model.network, model.heads = MapsWithHead(network, head, channels_last), ("head",)
