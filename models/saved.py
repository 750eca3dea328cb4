"""A trained model as two files, which are all that is needed to use it: the weights, and how to build and read it.

model.safetensors  the weights of the chosen epoch, by the names that the backbone's library gives them
model.json         backbone (for clip:FILE.json with the content of that file), image size, mean and std, classes,
                   thresholds, data, method, metrics
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import models
from datasets.images import ahead
from datasets.pixels import decode, rgb, squash
from models.backbone import Backbone
from models.weights import load_state, read_weights
from util.devices import autocast, default_workers, pick_precision
from util.errors import UserError
from util.files import atomic, digest, read_json, write_json

AHEAD = 3  # batches decoded before they are asked for

Photo = str | Path | Image.Image | np.ndarray


class Metadata(msgspec.Struct):
    """The content of model.json."""

    model: str
    image_size: int
    mean: list[float]
    std: list[float]
    classes: list[str]
    thresholds: list[float]
    weights: str  # checksum of model.safetensors
    heads: list[str] = []
    head: Literal["linear", "boostlu"] = "linear"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    tower: dict | None = None  # for clip:FILE.json, the content of FILE.json
    prompt_names: list[str] = []
    dataset: str = "unknown data"
    method: str = "unknown"
    paper: str = ""
    result: dict = {}


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to label photographs.

    network     in evaluation mode; (B, 3, S, S) float, normalised -> (B, L) logits
    metadata    the content of model.json
    thresholds  (L,) float: the probability from which on a label counts as present
    """

    network: Backbone
    metadata: Metadata
    thresholds: np.ndarray

    @property
    def classes(self) -> list[str]:
        return self.metadata.classes

    @property
    def image_size(self) -> int:
        return self.metadata.image_size

    def predict(
        self,
        images: Photo | Sequence[Photo],
        *,
        batch_size: int = 64,
        workers: int | None = None,
        on_bad: Callable[[int, UserError], None] | None = None,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """(N, L) float32 probabilities of photographs, in their order.

        images    one or several: paths, PIL images, or (H, W, 3) uint8 arrays
        workers   threads that decode; None: one per core, 8 at most
        on_bad    called with row and error of an image that cannot be read, whose probabilities are then NaN; by
                  default the error, a UserError that names the file, is raised
        on_batch  called after each batch with its number of images
        """
        single = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
        images = [images] if single else list(images)
        probs = np.full((len(images), len(self.classes)), np.nan, dtype=np.float32)
        decoded = enumerate(ahead(self._pixels, images, workers or default_workers(), AHEAD * batch_size))
        while batch := list(islice(decoded, batch_size)):
            readable = {row: pixels for row, pixels in batch if isinstance(pixels, np.ndarray)}
            for row, error in batch:
                if row not in readable:
                    if on_bad is None:
                        raise error
                    on_bad(row, error)
            if readable:
                probs[list(readable)] = self._forward(np.stack(list(readable.values())))
            on_batch(len(batch))
        return probs

    def labels(self, probs: np.ndarray, thresholds: np.ndarray | float | None = None) -> list[list[str]]:
        """For each row of (N, L) probabilities the classes that are present, the most probable first.

        thresholds  (L,) or one for all; None: the model's own
        """
        present = probs >= (self.thresholds if thresholds is None else thresholds)
        order = np.argsort(-probs, axis=1, kind="stable")
        return [[self.classes[label] for label in order[row] if present[row, label]] for row in range(len(probs))]

    def _pixels(self, image: Photo) -> np.ndarray | UserError:
        """(S, S, 3) uint8, or the error of an image that cannot be read."""
        if isinstance(image, np.ndarray | Image.Image):
            return squash(image if isinstance(image, np.ndarray) else rgb(image), self.image_size)
        try:
            return decode(str(image), self.image_size)
        except UserError as error:
            return error

    @torch.inference_mode()
    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8 -> (B, L) float32 probabilities."""
        device = self.network.mean.device
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        with autocast(device, self.metadata.precision if device.type == "cuda" else "float32"):
            logits = self.network(self.network.to_input(images))
        return torch.sigmoid(logits.float()).cpu().numpy()


def write(folder: Path, model: Backbone, metadata: dict) -> None:
    """The two files of a model; model.json, which holds the checksum of the weights, last.

    metadata  fields of Metadata, at least model, image_size, classes and thresholds
    """
    path = folder / "model.safetensors"
    with atomic(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.network.state_dict().items()}, temporary)
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    computed = {"heads": list(model.heads), "mean": mean, "std": std, "weights": _checksum(path)}
    write_json(folder / "model.json", metadata | computed)


def read(folder: Path) -> tuple[Metadata, Path]:
    """model.json and the path of the weights, whose checksum agrees with it."""
    hint = "name the folder of a finished run that trained a network (an unfinished one is finished by --resume)"
    metadata, path = read_json(folder / "model.json", Metadata, hint), folder / "model.safetensors"
    complete = len(metadata.thresholds) == len(metadata.classes) == len(set(metadata.classes))
    if not complete or not path.is_file() or _checksum(path) != metadata.weights:
        raise UserError(f"{path} is absent, damaged, or does not belong to model.json; copy both files again")
    return metadata, path


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load(run: str | Path, device: str | torch.device | None = None) -> Predictor:
    """The model of a run's folder, on any machine: neither the data set nor the internet is needed.

    device  None: a GPU if there is one
    """
    metadata, path = read(Path(run))
    with tempfile.TemporaryDirectory() as folder:
        name = metadata.model
        if metadata.tower is not None:  # open_clip reads the configuration of a tower from a file
            file = Path(folder) / f"{digest(metadata.tower)}.json"
            write_json(file, metadata.tower)
            name = f"clip:{file}"
        options = dict(image_size=metadata.image_size, head=metadata.head, pretrained=False)
        network = models.build(name, len(metadata.classes), **options)
    load_state(network.network, read_weights(path), path)
    network.mean.copy_(torch.tensor(metadata.mean).view(3, 1, 1))
    network.std.copy_(torch.tensor(metadata.std).view(3, 1, 1))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        pick_precision(metadata.precision, device)  # TF32 if the run had it
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return Predictor(network, metadata, np.array(metadata.thresholds))
