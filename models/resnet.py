"""ResNet-50 (He et al. 2016) as torchvision has it: the backbone of every paper here."""

from models.backbone import Backbone, Float32Linear
from models.weights import load_weights, torchvision_file


def resnet50(num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """ResNet-50 with the ImageNet weights of the papers (torchvision's IMAGENET1K_V1), and a new linear head."""
    from torchvision.models import ResNet50_Weights
    from torchvision.models import resnet50 as network_of

    network = network_of()
    if pretrained and not weights:
        file = torchvision_file(ResNet50_Weights.IMAGENET1K_V1.url, "resnet50")
        load_weights(network, file)
    network.fc = Float32Linear(network.fc.in_features, num_labels)
    if weights:
        load_weights(network, weights, head=("fc.",))
    return Backbone(network, heads=("fc",))
