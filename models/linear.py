"""Linear classification on a frozen backbone: its features are computed once, and a head is trained on them.

To the training a head is a backbone like any other (`Probe`) and cached features replace images (`Features`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.dataset import MultiLabelDataset
from datasets.images import Images, on_device
from models import saved
from models.backbone import Backbone, Float32Linear, check_finite
from models.clip import backbone_identity
from models.named_rows import names_of_arrays, read_rows
from models.weights import file_identity, read_weights
from util import distributed
from util.devices import autocast
from util.errors import UserError
from util.files import digest, local_file
from util.row_cache import cached_rows


@dataclass(frozen=True)
class Features:
    """The images of one split as a frozen backbone sees them.

    kept  (N, V, D) float32 on the device; V = 2 if the second view is the mirrored image, else 1
    """

    kept: Tensor

    def __len__(self) -> int:
        return len(self.kept)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """(B, V, D) on `device`: the features of each batch, (B,) int64 rows on the CPU."""
        for rows in on_device(batches, device):
            yield self.kept[rows]


class Probe(Backbone):
    """A linear head alone, as a backbone whose images are features."""

    def __init__(self, head: Float32Linear) -> None:
        super().__init__(head, heads=("",))

    def to_input(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """(B, V, D) features -> (B, D), of the mirrored images if `flip`, (B,) bool, is set."""
        if flip is None or images.shape[1] == 1:
            return images[:, 0]
        return torch.where(flip[:, None], images[:, 1], images[:, 0])


def new_probe(features: Features, num_labels: int) -> Probe:
    """A new linear head for the features."""
    return Probe(Float32Linear(features.kept.shape[-1], num_labels))


def load_features(path: str, split: MultiLabelDataset, device: torch.device) -> Features:
    """The features of a split's images from an npz file of a different program, as in `read_rows`: images (N,),
    features (N, D), and if it holds them mirrored (N, D), the features of the mirrored images."""
    path = local_file(path) or path
    arrays = ["features", "mirrored"] if "mirrored" in names_of_arrays(path) else ["features"]
    views = read_rows(path, arrays, split.names.tolist(), split.root)
    return Features(torch.from_numpy(np.stack([view.astype(np.float32) for view in views], axis=1)).to(device))


def head_of(model: Backbone) -> Float32Linear:
    """The backbone's head. Raises UserError if that is not one linear layer."""
    found = [model.network.get_submodule(name) for name in model.heads]
    if len(found) != 1 or not isinstance(found[0], nn.Linear):
        kinds = ", ".join(type(head).__name__ for head in found) or "none that timm names"
        raise UserError(f"a linear head is trained alone on a backbone with one linear head; this one's is: {kinds}")
    return found[0]


def load_head(model: Backbone, folder: Path) -> None:
    """Give the backbone, on all processes, the head of the model that a run with the same backbone saved."""
    if distributed.is_main():
        weights, head = read_weights(saved.read(folder)[1]), head_of(model)
        head.load_state_dict({name: weights[f"{model.heads[0]}.{name}"] for name in head.state_dict()})
    distributed.broadcast(head_of(model).state_dict().values())


def with_head(model: Backbone, head: nn.Module) -> Backbone:
    """The backbone with a different head, in place."""
    model.network.set_submodule(model.heads[0], head)
    return model


def weights_identity(model: str, weights: str | None, pretrained: bool, seed: int) -> object:
    """How caches name the weights of a backbone: by its name with the file, "published", or the seed of random ones."""
    return [backbone_identity(model), file_identity(weights) if weights else "published" if pretrained else seed]


def features(
    model: Backbone,
    split: MultiLabelDataset,
    images: Images,
    folder: Path,
    *,
    weights: object,
    mirrored: bool,
    batch_size: int,
    precision: str,
    device: torch.device,
) -> Features:
    """The input of the backbone's head for a split's images, from the cache in `folder`, which is filled first.

    weights   `weights_identity` of the backbone
    mirrored  keep the features of the mirrored images beside them
    """
    head = head_of(model)
    key = dict(
        images=split.image_key(), image_size=images.size, weights=weights, precision=precision, mirrored=mirrored
    )
    key["labels"] = head.out_features  # random weights of some networks depend on it

    @torch.inference_mode()
    def rows_from(rows: np.ndarray) -> Iterator[np.ndarray]:
        for batch in images.stream(torch.from_numpy(rows).split(batch_size), device):
            flips = [None, torch.ones(len(batch), dtype=torch.bool, device=device)] if mirrored else [None]
            with autocast(device, precision):
                views = [model(model.to_input(batch, flip)).float() for flip in flips]
            yield check_finite(torch.stack(views, dim=1).cpu().numpy(), f"the backbone's features in {precision}")

    shape, path = (len(split), 1 + mirrored, head.in_features), folder / f"features_{digest(key)}.npy"
    with_head(model, nn.Identity()).eval()
    try:
        kept = cached_rows(path, shape, np.float32, rows_from, "features of the frozen backbone", key)
    finally:
        with_head(model, head)
    return Features(torch.from_numpy(np.array(kept)).to(device))
