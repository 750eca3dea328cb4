"""A trained model as two files, which are all that is needed to use it: the weights, and how to build and read it.

model.safetensors  the weights of the chosen epoch, by the names that the backbone's library gives them
model.json         backbone (of clip:FILE.json what that file says), image size, mean and std, classes, thresholds,
                   data, method, metrics
"""

import csv
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import models
from datasets.images import ahead, decode, rgb, squash
from models.backbone import Backbone
from models.weights import read_weights
from util.devices import autocast, default_workers, pick_precision
from util.errors import UserError, describe_error
from util.files import atomic, digest, file_digest, read_json, write_json

FORMAT = 1  # of model.json; a reader refuses a later one
AHEAD = 3  # batches decoded before they are asked for

Photo = str | Path | Image.Image | np.ndarray


class Version(msgspec.Struct):
    format: int


class Recorded(msgspec.Struct):
    """config.json."""

    config: dict


class Description(msgspec.Struct):
    """The part of model.json that building the network and reading its output need."""

    model: str
    image_size: int
    mean: list[float]
    std: list[float]
    classes: list[str]
    prompt_names: list[str]
    thresholds: list[float] | None = None
    tower: dict | None = None


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to label photographs.

    network     in evaluation mode; (B, 3, S, S) float, normalised -> (B, L) logits
    classes     the names of its L labels
    thresholds  (L,) float: the probability from which on a label counts as present; 0.5 where none were chosen
    about       what model.json says, or for a run without one as much of it as its config.json does
    """

    network: Backbone
    classes: list[str]
    thresholds: np.ndarray
    about: dict

    @property
    def image_size(self) -> int:
        return self.about["image_size"]

    @property
    def device(self) -> torch.device:
        return self.network.mean.device

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
        on_bad    called with position and error of an image that cannot be read, whose row is then NaN; without it the
                  error, a UserError that names the file, is raised
        on_batch  called after each batch with its number of images
        """
        single = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
        images = [images] if single else list(images)
        workers = workers or default_workers()
        probs = np.full((len(images), len(self.classes)), np.nan, dtype=np.float32)
        decoded = ahead(self._pixels, images, workers, AHEAD * batch_size)
        for start in range(0, len(images), batch_size):
            rows, block = [], []
            for row in range(start, min(start + batch_size, len(images))):
                pixels = next(decoded)
                if not isinstance(pixels, UserError):
                    rows.append(row)
                    block.append(pixels)
                elif on_bad:
                    on_bad(row, pixels)
                else:
                    raise pixels
            if rows:
                probs[rows] = self._forward(np.stack(block))
            on_batch(min(batch_size, len(images) - start))
        return probs

    def labels(self, probs: np.ndarray, thresholds: np.ndarray | float | None = None) -> list[list[str]]:
        """For each row of (N, L) probabilities the classes that are present, the most probable first.

        thresholds  (L,) or one for all; None: the model's own
        """
        present = probs >= (self.thresholds if thresholds is None else thresholds)
        order = np.argsort(-probs, axis=1, kind="stable")
        return [[self.classes[label] for label in labels if there[label]]
                for labels, there in zip(order, present, strict=True)]  # fmt: skip

    def _pixels(self, image: Photo) -> np.ndarray | UserError:
        """(S, S, 3) uint8, or the error of an image that cannot be read."""
        if isinstance(image, Image.Image):
            image = rgb(image)
        try:
            return (
                squash(image, self.image_size) if isinstance(image, np.ndarray) else decode(str(image), self.image_size)
            )
        except UserError as error:
            return error

    @torch.inference_mode()
    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8 -> (B, L) float32 probabilities."""
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        precision = self.about.get("precision", "float32") if self.device.type == "cuda" else "float32"
        with autocast(self.device, precision):
            logits = self.network(self.network.to_input(images))
        return torch.sigmoid(logits.float()).cpu().numpy()


def write(folder: Path, model: Backbone, about: dict) -> None:
    """The two files of a model; model.json, which names the digest of the weights, last.

    about  JSON: model (its name), image_size, classes, prompt_names, thresholds, and whatever else should be known
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    path = folder / "model.safetensors"
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors))
    mean, std = (buffer.flatten().tolist() for buffer in (model.mean, model.std))
    shape = {"heads": list(model.heads), "mean": mean, "std": std, "weights": file_digest(path)}
    write_json(folder / "model.json", {"format": FORMAT} | about | shape)


def load(run: str | Path, device: str | torch.device | None = None) -> Predictor:
    """The model of a run's folder, on any machine: neither the data set nor the network is needed.

    device  None: a GPU if there is one
    Raises UserError for a folder that lacks a file, is damaged, or was made by a newer version.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of a finished run, such as results/RUN")
    about, weights = read(folder) if (folder / "model.json").exists() else _earlier(folder)
    path, classes = folder / weights, about["classes"]
    if not path.exists():
        raise UserError(f"{path} not found; a model is {weights} and model.json: copy both")
    if about.get("weights", file_digest(path)) != file_digest(path):
        raise UserError(f"{path} is damaged, or not the one that model.json was written for; copy both again")
    network = _build(about, len(classes))
    try:
        network.network.load_state_dict({name.removeprefix("network."): t for name, t in read_weights(path).items()})
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {about['model']} with {len(classes)} classes ({describe_error(error)})"
        ) from None
    for name in ("mean", "std"):
        if name in about:
            getattr(network, name).copy_(torch.tensor(about[name]).view(3, 1, 1))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        pick_precision(about.get("precision", "float32"), device)  # TF32 where the run had it, and nowhere else
    thresholds = np.array(about.get("thresholds") or [0.5] * len(classes))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return Predictor(network, classes, thresholds, about)


def _build(about: dict, num_labels: int) -> Backbone:
    """The network that model.json describes, with random weights."""
    options = dict(image_size=about["image_size"], head=about.get("head", "linear"), pretrained=False)
    if about.get("tower") is None:
        return models.build(about["model"], num_labels, **options)
    with tempfile.TemporaryDirectory() as folder:  # open_clip reads the configuration of a tower from a file
        path = Path(folder) / f"{digest(about['tower'])}.json"
        write_json(path, about["tower"])
        return models.build(f"clip:{path}", num_labels, **options)


def read(folder: Path) -> tuple[dict, str]:
    """model.json, checked, and the name of the file of weights. Raises UserError where it is not what `write` wrote."""
    path, again = folder / "model.json", "copy the folder of the run again"
    if (made := read_json(path, Version, again).format) > FORMAT:
        raise UserError(f"{path} was made by a newer version (format {made}; this one reads up to {FORMAT}): update it")
    found = read_json(path, Description, again)
    if found.thresholds is not None and len(found.thresholds) != len(found.classes):
        raise UserError(
            f"{path} has {len(found.thresholds)} thresholds for {len(found.classes)} classes, of another class list; "
            f"{again}"
        )
    return read_json(path), "model.safetensors"


def _earlier(folder: Path) -> tuple[dict, str]:
    """The same of a run that was finished before models were saved so: from its config.json and per_class.csv."""
    if (folder / "test.json").exists() and not (folder / "best.pt").exists():
        raise UserError(f"{folder} holds no model: nothing was trained in it, or its weights were removed")
    missing = [name for name in ("config.json", "best.pt", "per_class.csv") if not (folder / name).exists()]
    if missing:
        finish = "finish it with --resume" if (folder / "config.json").exists() else "name the folder of a finished run"
        raise UserError(f"{folder} holds no finished model: it has neither model.json nor {missing[0]}; {finish}")
    config = read_json(folder / "config.json", Recorded).config
    with open(folder / "per_class.csv", newline="") as file:
        classes = [row["class"] for row in csv.DictReader(file)]
    about = {name: config[name] for name in ("model", "head", "image_size", "precision") if name in config}
    data = {"dataset": config.get("dataset"), "method": config.get("loss")}
    return about | data | {"classes": classes, "prompt_names": classes}, "best.pt"
