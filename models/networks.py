"""Networks with their published weights: torchvision's ResNet-50 and any model of timm (Wightman)."""

from torch import nn

from models.backbone import Backbone, Float32Linear, starts_as_linear
from models.weights import OFFLINE, hub_file, load_weights, read_weights, torchvision_file
from util.errors import UserError

HUB_FILES = ["model.safetensors", "pytorch_model.bin"]  # of timm's repositories


def resnet50(num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """ResNet-50 (He et al. 2016), the backbone of every paper here, with torchvision's IMAGENET1K_V1 weights and a new
    linear head."""
    from torchvision.models import ResNet50_Weights
    from torchvision.models import resnet50 as network_of

    network = network_of()
    if pretrained and not weights:
        load_weights(network, torchvision_file(ResNet50_Weights.IMAGENET1K_V1.url, "resnet50"))
    network.fc = Float32Linear(network.fc.in_features, num_labels)
    if weights:
        load_weights(network, weights, head=("fc.",))
    return Backbone(network, heads=("fc",))


def timm_any(name: str, num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """A timm model with a new head. One of fixed input size (a ViT) is built for image_size, its position embeddings
    resampled."""
    import timm

    published = timm.get_pretrained_cfg(name)
    options = {"img_size": image_size} if published is not None and published.fixed_input_size else {}
    if pretrained and not weights:
        if published is None or not published.hf_hub_id:
            raise UserError(f"timm publishes no weights of {name} on the Hugging Face hub; {OFFLINE}")
        file = hub_file(published.hf_hub_id, HUB_FILES, f"timm:{name}")
        read_weights(file)  # raises if it is damaged
        options |= dict(pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    network = timm.create_model(name, num_classes=num_labels, **options)
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    for head in heads:
        linear = network.get_submodule(head)
        if type(linear) is nn.Linear:
            linear.__class__ = Float32Linear  # the same parameters
            if not starts_as_linear(linear):
                linear.reset_parameters()
    if weights:
        load_weights(network, weights, head=tuple(f"{head}." for head in heads))
    return Backbone(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"], heads)
