"""A file of similarities, computed by a different program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from models.named_rows import names_of_arrays, read_rows
from models.teachers.base import Teacher
from util.files import local_file

LARGEST = np.float32(1e6)  # of a similarity: above, the softmax gives all to one label even at temperature 1


@dataclass(frozen=True)
class FileTeacher(Teacher):
    """similarity: npz file as `load_similarities` reads it.  teacher_views: global; tiles: also its array `tiles` or
    `tiles_max`."""

    similarity: str
    teacher_views: str = "global"
    scores_new_images = False

    def similarities(self, split: MultiLabelDataset, classes: Classes, *_: object, **__: object) -> list[np.ndarray]:
        """Of tiles (N, K, L), with K = 1 for their maximum alone."""
        path, arrays = local_file(self.similarity) or self.similarity, ["similarity"]
        if self.teacher_views == "tiles":
            arrays.append("tiles" if "tiles" in names_of_arrays(path) else "tiles_max")
        whole, *tiles = load_similarities(path, split.names, classes.names, arrays, split.root)
        return [whole, *(part if part.ndim == 3 else part[:, None] for part in tiles)]


def load_similarities(
    path: str | Path,
    images: np.ndarray,
    classes: list[str],
    arrays: Sequence[str] = ("similarity",),
    root: str | Path = ".",
) -> list[np.ndarray]:
    """(N, L) float similarities (cosines or logits) of images and classes from an npz file of `images`, `classes`,
    `similarity`, as in `read_rows`.

    arrays  `similarity`, and of the same images and classes `tiles_max`, the largest over the tiles of an image, each
            less its own mean over the classes; or `tiles`, (N, K, L) of K tiles
    """
    return read_rows(path, arrays, images.tolist(), root, classes, LARGEST)
