"""CLIP as the teacher: it scores every training image against every class name, once, before training.

Its similarities are cached beside the data set. What follows from them (temperature, threshold, fraction) is not, so a
sweep over these never runs the teacher again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from datasets.images import decode_batches, to_input
from models.backbone import IMAGENET_MEAN, IMAGENET_STD
from models.clip import clip_file, create_clip, normalisation
from models.vit_clip import NAME, TAG
from util.errors import UserError
from util.files import digest, file_digest, local_file, read_array
from util.row_cache import cached_rows

DEFAULT, DEFAULT_WEIGHTS = NAME, TAG  # VLPL's teacher
OFFLINE = "give --teacher-weights FILE, or --similarity FILE.npz"
RESAMPLE = "bicubic"  # what CLIP was trained with; differs: published as bilinear
HALF = torch.float16  # CLIP's own; ten times closer to float32's similarities than bf16 (benchmarks/teacher.py)
REFERENCE_SIZE = 448  # pixels; the published code resizes from here to the teacher's size


@dataclass(frozen=True)
class ClipTeacher:
    """Which teacher: all that its similarities depend on, apart from images and class names.

    name           open_clip's name of the model, or FILE.json with an open_clip model config
    weights        open_clip's tag, or a local file
    prompt         caption of a class; {} stands for its prompt name
    preprocess     own, or reference: what the published code fed to its teacher
    text_features  FILE.npy of (L, D) class text features, instead of the text tower
    precision      float32, or any other: half precision
    """

    name: str
    weights: str
    prompt: str = "{}"
    preprocess: str = "own"
    text_features: str | None = None
    precision: str = "float32"

    def captions(self, classes: Classes) -> list[str]:
        return [self.prompt.replace("{}", name) for name in classes.prompt_names]

    def key(self, classes: Classes, split: MultiLabelDataset) -> dict[str, object]:
        """The key of the cached similarities, known without building the teacher."""
        weights, model = local_file(self.weights), local_file(self.name)
        return {
            "images": split.image_key(),
            "teacher": file_digest(model) if model else self.name,
            "weights": file_digest(weights) if weights else self.weights,
            "text": file_digest(self.text_features) if self.text_features else self.captions(classes),
            "preprocess": self.preprocess,
            "precision": "float32" if self.precision == "float32" else str(HALF),
        }


class Scorer(nn.Module):
    """Pixels to cosine similarities.

    clip           an open_clip model
    text_features  (L, D) float, any norm
    """

    def __init__(
        self, clip: nn.Module, text_features: Tensor, mean: tuple[float, ...], std: tuple[float, ...], preprocess: str
    ) -> None:
        super().__init__()
        self.clip = clip
        self.size = int(torch.tensor(clip.visual.image_size).max())
        self.preprocess = preprocess
        if preprocess == "reference":  # differs: published always so
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        self.register_buffer("text_features", F.normalize(text_features.float(), dim=1))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32 cosine similarities."""
        images = to_input(images, self.mean, self.std, flip)
        if self.preprocess == "reference":
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        features = self.clip.encode_image(images)
        with torch.autocast(features.device.type, enabled=False):  # a cosine in half precision has coarse steps
            return F.normalize(features.float(), dim=1) @ self.text_features.T


def read_text_features(path: str, num_labels: int) -> np.ndarray:
    """(L, D) float32 from an .npy file; raises UserError for any other."""
    features = read_array(path)
    if (
        features.ndim != 2
        or len(features) != num_labels
        or features.dtype.kind != "f"
        or not np.isfinite(features).all()
    ):
        raise UserError(
            f"--text-features {path} is {features.dtype} of shape {features.shape}, expected finite floats of shape "
            f"({num_labels}, D), one row per label"
        )
    return features.astype(np.float32)


@torch.inference_mode()
def encode_captions(clip: nn.Module, name: str, texts: list[str]) -> Tensor:
    """(L, D) text features, not normalised."""
    from open_clip import get_tokenizer

    return clip.encode_text(get_tokenizer(name)(texts))


def build(teacher: ClipTeacher, classes: Classes) -> Scorer:
    """The teacher's network on the CPU. Raises UserError where its weights cannot be had or do not fit."""
    given = read_text_features(teacher.text_features, len(classes.names)) if teacher.text_features else None
    file = clip_file(teacher.name, teacher.weights, "teacher", OFFLINE)
    clip = create_clip(teacher.name, file).eval().requires_grad_(False)
    if given is not None:
        features = torch.from_numpy(given)
        width = clip.visual.output_dim if hasattr(clip.visual, "output_dim") else features.shape[1]
        if features.shape[1] != width:
            raise UserError(f"--text-features have {features.shape[1]} numbers per label, {teacher.name} has {width}")
    else:
        name = Path(teacher.name).stem if teacher.name.endswith(".json") else teacher.name
        features = encode_captions(clip, name, teacher.captions(classes))
    return Scorer(clip, features, *normalisation(teacher.name, teacher.weights), teacher.preprocess)


def similarities(
    teacher: ClipTeacher,
    split: MultiLabelDataset,
    classes: Classes,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
) -> np.ndarray:
    """(N, L) float32 cosine similarities of a split's images, from the cache in `folder`, which is filled first."""
    key = teacher.key(classes, split)

    def rows_from(rows: np.ndarray) -> Iterator[np.ndarray]:
        scorer = build(teacher, classes).to(device)
        return score(scorer, split.paths(), rows, batch_size, device, teacher.precision, workers)

    path, shape = folder / f"similarity_{digest(key)}.npy", (len(split), len(classes.names))
    return np.array(cached_rows(path, shape, np.float32, rows_from, "teacher scores the training images", about=key))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, HALF, enabled=precision != "float32")


@torch.inference_mode()
def score(
    scorer: Scorer,
    paths: list[str],
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    precision: str,
    workers: int,
) -> Iterator[np.ndarray]:
    """(B, L) float32 blocks of the similarities of `rows` of the paths, in order."""
    reference = scorer.preprocess == "reference"
    size, resample = (REFERENCE_SIZE, "bilinear") if reference else (scorer.size, RESAMPLE)
    flips = torch.rand(len(paths), generator=torch.Generator().manual_seed(0)) < 0.5  # a function of the row
    batches = torch.from_numpy(rows).split(batch_size)
    for batch, block in zip(batches, decode_batches(paths, size, batches, workers, resample), strict=True):
        images = torch.from_numpy(block).to(device, non_blocking=True).permute(0, 3, 1, 2)
        flip = flips[batch].to(device) if reference else None
        with autocast(device, precision):
            block = scorer(images, flip).cpu().numpy()
        if not np.isfinite(block).all():
            raise UserError(f"the teacher's similarities are not finite at --precision {precision}; take float32")
        yield block
