"""Any backbone of timm (Wightman), among them VLPL's ConvNeXt-XLarge."""

from models.backbone import OFFLINE, Backbone
from models.weights import hub_file, load_weights

HUB_FILES = ["model.safetensors", "pytorch_model.bin"]


def timm_any(name: str, num_labels: int, *, image_size: int, pretrained: bool, weights: str | None) -> Backbone:
    """A timm model, `architecture` or `architecture.tag`, with a new head of num_labels.

    A model of fixed input size (a ViT) is built for image_size, its position embeddings resampled.
    """
    import timm

    about = timm.get_pretrained_cfg(name)
    sized = {"img_size": image_size} if about is not None and about.fixed_input_size else {}
    overlay = {}
    if pretrained and not weights:
        overlay = {"file": str(hub_file(about.hf_hub_id, HUB_FILES, f"timm:{name}", OFFLINE))}
    network = timm.create_model(
        name, pretrained=bool(overlay), pretrained_cfg_overlay=overlay, num_classes=num_labels, **sized
    )
    if weights:
        load_weights(network, weights, head=network.pretrained_cfg["classifier"] + ".")
    return Backbone(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
