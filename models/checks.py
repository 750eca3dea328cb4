"""The check at the start of a run on a GPU: what the network computes there is compared with the CPU, for about a
second. `--no-checks` skips it."""

from contextlib import ExitStack
from copy import deepcopy

import torch
from torch import Tensor

from models import Backbone
from util.devices import autocast
from util.errors import UserError

# Largest relative difference from float32 on a CPU. Emulated there, bf16's rounding makes 0.10 in a random ResNet-50
# whose batch norm fits its images, TF32's makes 0.016; in a ViT-S, a ConvNeXt-T and others both make less
SAME_OUTPUT = {"float32": 1e-2, "tf32": 0.1, "bf16": 0.5}


@torch.inference_mode()
def outputs(model: Backbone, images: Tensor, precision: str) -> None:
    """Raises UserError if features and logits of some images on their device differ from those on a CPU in float32."""
    training = model.training
    model.eval()
    got = features_and_logits(model, images, precision)
    expected = features_and_logits(deepcopy(model).cpu(), images.cpu(), "float32")
    model.train(training)
    difference = float((got - expected).norm() / expected.norm())
    if not difference <= SAME_OUTPUT[precision]:
        raise UserError(
            f"features and logits on {images.device} in {precision} differ from a CPU's by {difference:.2g} of their "
            f"size (at most {SAME_OUTPUT[precision]:g}); try --precision float32 or a different GPU, or skip this "
            "check with --no-checks"
        )


def features_and_logits(model: Backbone, images: Tensor, precision: str) -> Tensor:
    """The classifier's input and the logits, as one float vector on the CPU. Logits alone may nearly cancel, and would
    consist of rounding errors then."""
    seen = []
    with ExitStack() as hooks, autocast(images.device, precision):
        for name in model.heads:
            head = model.network.get_submodule(name)
            hooks.callback(head.register_forward_pre_hook(lambda head, given: seen.append(given[0])).remove)
        seen.append(model(model.to_input(images)))
    return torch.cat([part.float().cpu().flatten() for part in seen])
