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


def use_boostlu(model: Backbone, name: str, num_labels: int, image_size: int) -> None:
    """Replace a backbone's pooling and linear head by BoostLU. Raises UserError if it makes no feature maps."""
    from torchvision.ops import Permute

    maps = model.network
    if hasattr(maps, "reset_classifier"):  # timm's
        maps.reset_classifier(0, "")
    elif hasattr(maps, "avgpool"):  # torchvision's ResNet
        maps = nn.Sequential(OrderedDict(list(maps.named_children())[:-2]))
    parts = OrderedDict(maps=maps)
    if str(getattr(maps, "output_fmt", "")).endswith("NHWC"):
        parts["channels_first"] = Permute([0, 3, 1, 2])
    shape = output_shape(nn.Sequential(parts), (2, 3, image_size, image_size))
    if len(shape) != 4:
        raise UserError(f"--head boostlu needs feature maps, and {name} makes none; take a convolutional backbone")
    parts["head"] = BoostLU(shape[1], num_labels)
    model.network, model.heads = nn.Sequential(parts), ("head",)
