"""CLIP as the teacher: it scores the whole image (view `global`), and on request its tiles or patches, against every
class name. Its similarities are cached beside the data set; temperature, threshold and calibration are applied later.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from datasets.images import decode_batches, moved
from models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Channels, check_finite
from models.clip import clip_file, config_name, create_clip, model_config, normalisation
from models.teachers.base import Teacher
from models.teachers.captions import encode_captions, read_text_features, templates
from models.teachers.patches import patch_features
from util.errors import UserError
from util.files import digest, local_file
from util.row_cache import cached_rows

PATCH_TEMPERATURE = 0.01  # of the softmax of each patch: CLIP's own
RESAMPLE = "bicubic"  # as in CLIP's training; differs: published as bilinear
HALF = torch.float16  # CLIP's own; ten times closer to float32's similarities than bf16 (benchmarks/teacher.py)
VIEWS = {"global": ("global",), "tiles": ("global", "tiles"), "patches": ("global", "patches")}  # of --teacher-views
CHECKED, SAME_SIMILARITY = 8, 1e-3  # images compared with float32, and by how much half precision may differ
OFFLINE = "give --teacher-weights FILE, or --similarity FILE.npz"
SMALL = 64 * 2**20  # bytes of the weights of a teacher that scores a few images in seconds
REFERENCE_SIZE = 448  # pixels; the published code resizes from here to the teacher's size


@dataclass(frozen=True)
class ClipTeacher(Teacher):
    """Which teacher: all that its similarities depend on, apart from images and class names.

    teacher             open_clip's name of the model, or FILE.json with an open_clip model config
    teacher_weights     open_clip's tag, or a local file
    prompt              captions of a class; {} stands for its prompt name; imagenet stands for CLIP's 80 ImageNet
                        templates. The normalised text features of several captions are averaged
    teacher_preprocess  own, or reference: the published preprocessing
    text_features       FILE.npy of (L, D) class text features, instead of the text tower
    precision           float32, or any other: half precision
    teacher_views       a key of VIEWS
    teacher_tiles       the view `tiles` consists of teacher_tiles x teacher_tiles parts of the image
    """

    teacher: str
    teacher_weights: str
    prompt: tuple[str, ...] = ("{}",)
    teacher_preprocess: str = "own"
    text_features: str | None = None
    precision: str = "float32"
    teacher_views: str = "global"
    teacher_tiles: int = 3

    def is_quick(self) -> bool:
        weights = local_file(self.teacher_weights)
        return weights is not None and weights.stat().st_size <= SMALL

    def captions(self, classes: Classes) -> list[list[str]]:
        """For each prompt the L captions."""
        return [[prompt.replace("{}", name) for name in classes.prompt_names] for prompt in templates(self.prompt)]

    def similarities(
        self, split: MultiLabelDataset, classes: Classes, folder: Path, *, checked: bool = True, **options: Any
    ) -> list[np.ndarray]:
        """Cosine similarities; of patches as in Scorer.patches."""

        def of_view(view: str) -> np.ndarray:
            tiles = [self.teacher_tiles**2] if view == "tiles" else []
            key = self.identity() | {
                "images": split.image_key(),
                "prompt": None if self.text_features else self.captions(classes),
                "precision": "float32" if self.precision == "float32" else f"{HALF} weights",
                "teacher_views": view,
                "teacher_tiles": self.teacher_tiles if view == "tiles" else None,
            }

            def rows_from(rows: np.ndarray) -> Iterator[np.ndarray]:
                scorer, paths = build(self, classes).to(options["device"]), split.paths()
                if checked and self.precision != "float32":
                    check_half(scorer, paths, rows[:CHECKED], **options)
                scorer.to_precision(self.precision)
                return score(scorer, paths, rows, **options, view=view, tiles=self.teacher_tiles)

            path, description = folder / f"similarity_{digest(key)}.npy", f"teacher scores the images ({view})"
            shape = (len(split), *tiles, len(classes.names))
            return np.array(cached_rows(path, shape, np.float32, rows_from, description, key))

        return [of_view(view) for view in VIEWS[self.teacher_views]]


class Scorer(Backbone):
    """Pixels to cosine similarities.

    clip           an open_clip model, whose image tower is changed in place
    text_features  (L, D) float, any norm
    """

    def __init__(self, clip: nn.Module, text_features: Tensor, mean: Channels, std: Channels, preprocess: str) -> None:
        if preprocess == "reference":  # differs: published always so
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        super().__init__(clip, mean, std)
        fold_quick_gelu(clip.visual)
        self.dtype, self.preprocess, self.size = torch.float32, preprocess, int(np.max(clip.visual.image_size))
        self.register_buffer("text_features", F.normalize(text_features.float(), dim=1))

    def to_precision(self, precision: str) -> "Scorer":
        """The same with the image tower's weights in half precision, unless precision is float32. Autocast would cast
        them for every batch and keep PyTorch from its fused attention."""
        self.dtype = torch.float32 if precision == "float32" else HALF
        self.network.visual.to(self.dtype)
        return self

    def forward(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32 cosine similarities."""
        images = self.to_input(images, flip)
        if self.preprocess == "reference":
            images = F.interpolate(images, size=self.size, mode="bilinear")  # as torchvision did
        features = self.network.encode_image(images.to(self.dtype))
        return F.normalize(features.float(), dim=1) @ self.text_features.T  # in half precision it has coarse steps

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32: T log of the largest over the patches of softmax(cosine / T)."""
        features = patch_features(self.network.visual, self.to_input(images).to(self.dtype))
        cosine = F.normalize(features.float(), dim=2) @ self.text_features.T
        return PATCH_TEMPERATURE * torch.log_softmax(cosine / PATCH_TEMPERATURE, dim=2).amax(dim=1)


@torch.no_grad()
def fold_quick_gelu(tower: nn.Module) -> None:
    """Turn every QuickGELU between two linear layers into one SiLU, in place, by x sigmoid(c x) = silu(c x) / c, with
    c = 1.702 in the layers' weights."""
    from open_clip.transformer import QuickGELU

    for mlp in tower.modules():
        if isinstance(getattr(mlp, "gelu", None), QuickGELU):
            mlp.c_fc.weight.mul_(1.702)
            mlp.c_fc.bias.mul_(1.702)
            mlp.c_proj.weight.div_(1.702)
            mlp.gelu = nn.SiLU()


def cut(images: Tensor, tiles: int) -> Tensor:
    """(B, 3, kS, kS) -> (B k k, 3, S, S): the k x k tiles of each image, row by row."""
    parts = images.unflatten(2, (tiles, -1)).unflatten(4, (tiles, -1))  # (B, 3, k, S, k, S)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def build(teacher: ClipTeacher, classes: Classes) -> Scorer:
    """The teacher's network on the CPU. Raises UserError if its weights cannot be fetched or do not fit."""
    name, weights = teacher.teacher, teacher.teacher_weights
    if teacher.text_features:
        given = read_text_features(teacher.text_features, (len(classes.names), model_config(name)["embed_dim"]))
    clip = create_clip(name, clip_file(name, weights, OFFLINE)).eval().requires_grad_(False)
    if not teacher.text_features:
        given = encode_captions(clip, config_name(name), teacher.captions(classes), classes.names)
    return Scorer(clip, given, *normalisation(name, weights), teacher.teacher_preprocess)


@torch.inference_mode()
def score(
    scorer: Scorer,
    paths: list[str],
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    workers: int,
    view: str = "global",
    tiles: int = 1,
) -> Iterator[np.ndarray]:
    """(B, L) float32 blocks, of tiles (B, K, L), of the similarities of `rows` of the paths, in order."""
    reference = scorer.preprocess == "reference"
    size, resample = (REFERENCE_SIZE, "bilinear") if reference else (scorer.size, RESAMPLE)
    if view == "tiles":
        size, batch_size = tiles * size, max(1, batch_size // tiles**2)
    flips = torch.rand(len(paths), generator=torch.Generator().manual_seed(0)) < 0.5  # a function of the row
    batches = torch.from_numpy(rows).split(batch_size)

    def launched() -> Iterator[Tensor]:
        for batch, block in zip(batches, decode_batches(paths, size, batches, workers, resample), strict=True):
            images = moved(block, device)
            if view == "tiles":
                yield scorer(cut(images, tiles)).unflatten(0, (len(batch), -1))
            elif view == "patches":
                yield scorer.patches(images)
            else:
                yield scorer(images, flips[batch].to(device) if reference else None)

    for block in read_behind(launched()):
        yield check_finite(block, f"the teacher's similarities in {scorer.dtype}")


def check_half(scorer: Scorer, paths: list[str], rows: np.ndarray, **options: Any) -> None:
    """Raises UserError if a teacher, given in float32, differs in half precision, on whole images."""
    both = (scorer, deepcopy(scorer).to_precision("half"))
    whole, half = (np.concatenate(list(score(one, paths, rows, **options))) for one in both)
    if not (difference := np.abs(whole - half).max()) <= SAME_SIMILARITY:
        raise UserError(
            f"the teacher's similarities in half precision differ by {difference:.2g} from those in float32 (at most "
            f"{SAME_SIMILARITY:g}); take --precision float32 (--no-checks skips this check)"
        )


def read_behind(results: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The values of tensors on a device, each read after the next one was launched, so that a GPU never waits."""
    copies = []
    for result in results:
        copies.append((result.to("cpu", non_blocking=result.is_cuda), torch.cuda.Event() if result.is_cuda else None))
        if copies[-1][1]:
            copies[-1][1].record()
        if len(copies) > 1:
            yield _read(*copies.pop(0))
    yield from (_read(*copy) for copy in copies)


def _read(values: Tensor, copied: torch.cuda.Event | None) -> np.ndarray:
    if copied:
        copied.synchronize()
    return values.numpy()
