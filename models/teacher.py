"""The frozen teacher: CLIP scores every training image against every class, once, before training.

Its similarities are cached beside the data set; what follows from them (temperature, threshold, fraction) is not, so
that a sweep never runs the teacher again.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import processes
from cli import UserError
from config import Config, local_file
from datasets.files import Classes
from datasets.images import decode_batches, to_input
from datasets.multilabel import MultiLabelDataset
from models.backbone import IMAGENET_MEAN, IMAGENET_STD
from models.clip import clip_file, create_clip, normalisation
from storage import digest, file_digest, grow_rows, why, write_json

OFFLINE = "give --teacher-weights FILE, or --similarity FILE.npz"
RESAMPLE = "bicubic"  # what CLIP was trained with; differs: published as bilinear
HALF = torch.float16  # CLIP's own; ten times closer to float32's similarities than bf16 (benchmarks/teacher.py)
REFERENCE_SIZE = 448  # pixels; the published code resizes from here to the teacher's size


class Teacher(nn.Module):
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


def captions(config: Config, classes: Classes) -> list[str]:
    return [config.prompt.replace("{}", name) for name in classes.prompt_names]


def read_text_features(path: str, num_labels: int) -> np.ndarray:
    """(L, D) float32 from an .npy file; raises UserError for any other."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--text-features {path} is not a plain NumPy array ({why(error)})") from None
    if (
        features.ndim != 2
        or len(features) != num_labels
        or features.dtype.kind != "f"
        or not np.isfinite(features).all()
    ):
        raise UserError(
            f"--text-features {path} is {features.dtype} of shape {features.shape}, expected finite floats of shape "
            f"({num_labels}, D), one row a label"
        )
    return features.astype(np.float32)


@torch.inference_mode()
def encode_captions(clip: nn.Module, name: str, texts: list[str]) -> Tensor:
    """(L, D) text features, not normalised."""
    from open_clip import get_tokenizer

    return clip.encode_text(get_tokenizer(name)(texts))


def build(config: Config, classes: Classes) -> Teacher:
    """The teacher on the CPU. Raises UserError where its weights are not to be had or do not fit."""
    given = read_text_features(config.text_features, len(classes.names)) if config.text_features else None
    file = clip_file(config.teacher, config.teacher_weights, "teacher", OFFLINE)
    clip = create_clip(config.teacher, file).eval().requires_grad_(False)
    if given is not None:
        features = torch.from_numpy(given)
        width = clip.visual.output_dim if hasattr(clip.visual, "output_dim") else features.shape[1]
        if features.shape[1] != width:
            raise UserError(f"--text-features have {features.shape[1]} numbers a label, {config.teacher} has {width}")
    else:
        features = encode_captions(
            clip,
            Path(config.teacher).stem if config.teacher.endswith(".json") else config.teacher,
            captions(config, classes),
        )
    return Teacher(clip, features, *normalisation(config.teacher, config.teacher_weights), config.teacher_preprocess)


def describe(config: Config, classes: Classes, split: MultiLabelDataset) -> dict[str, object]:
    """All that the similarities depend on: the cache's key, known without building the teacher."""
    weights, model = local_file(config.teacher_weights), local_file(config.teacher)
    return {
        "images": split.image_key(),
        "teacher": file_digest(model) if model else config.teacher,
        "weights": file_digest(weights) if weights else config.teacher_weights,
        "text": file_digest(config.text_features) if config.text_features else captions(config, classes),
        "preprocess": config.teacher_preprocess,
        "precision": config.precision if config.precision == "float32" else str(HALF),
    }


def similarities(
    config: Config, split: MultiLabelDataset, classes: Classes, folder: Path, device: torch.device, workers: int
) -> np.ndarray:
    """(N, L) float32 cosine similarities of a split's images, from the cache in `folder`, which is filled first."""
    about = describe(config, classes, split)
    file = folder / f"similarity_{digest(about)}.npy"

    def rows_from(rows: np.ndarray) -> Iterator[np.ndarray]:
        teacher = build(config, classes).to(device)
        if processes.is_first():
            write_json(file.with_suffix(".json"), about)  # for people: what the key in the file's name stands for
        return score(teacher, split.paths(), rows, config.eval_batch_size, device, config.precision, workers)

    shape = (len(split), len(classes.names))
    return np.array(grow_rows(file, shape, np.float32, rows_from, "teacher scores the training images"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, HALF, enabled=precision != "float32")


@torch.inference_mode()
def score(
    teacher: Teacher,
    paths: list[str],
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    precision: str,
    workers: int,
) -> Iterator[np.ndarray]:
    """(B, L) float32 blocks of the similarities of `rows` of the paths, in order."""
    reference = teacher.preprocess == "reference"
    size, resample = (REFERENCE_SIZE, "bilinear") if reference else (teacher.size, RESAMPLE)
    flips = torch.rand(len(paths), generator=torch.Generator().manual_seed(0)) < 0.5  # known by row: no hidden state
    batches = torch.from_numpy(rows).split(batch_size)
    for batch, block in zip(batches, decode_batches(paths, size, batches, workers, resample), strict=True):
        images = torch.from_numpy(block).to(device, non_blocking=True).permute(0, 3, 1, 2)
        flip = flips[batch].to(device) if reference else None
        with autocast(device, precision):
            block = teacher(images, flip).cpu().numpy()
        if not np.isfinite(block).all():
            raise UserError(f"the teacher's similarities are not finite at --precision {precision}; take float32")
        yield block
