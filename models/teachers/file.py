"""A file of similarities, computed by a different program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from models.named_rows import find_rows
from models.teachers.base import Teacher
from util.errors import UserError
from util.files import local_file, read_arrays, reading

LARGEST = 1e6  # of a similarity: beyond it, even a temperature of 1 leaves one label with all of the softmax


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
            with reading(path, "an npz file"), np.load(path) as file:
                arrays += [name for name in ("tiles", "tiles_max") if name in file.files][:1]
            if len(arrays) == 1:
                raise UserError(
                    f"{path} has neither tiles nor tiles_max, which --teacher-views tiles reads; give "
                    "--teacher-views global"
                )
        whole, *tiles = load_similarities(path, split.names, classes.names, arrays, split.root)
        return [whole, *(part if part.ndim == 3 else part[:, None] for part in tiles)]


def load_similarities(
    path: str | Path,
    images: np.ndarray,
    classes: list[str],
    arrays: Sequence[str] = ("similarity",),
    root: str | Path = ".",
) -> list[np.ndarray]:
    """(N, L) float similarities of `images` and `classes` from an npz file of `images`, `classes`, `similarity`.

    arrays  further arrays of the same images and classes: `tiles_max`, the largest over the tiles of an image, each
            less its own mean over the classes; or `tiles`, (N, K, L) of K tiles
    root    folder of the images
    Rows are found by image name and columns by class name, so order and surplus do not matter. Raises UserError for
    a file that does not fit, and for the first image or class that it lacks.
    """
    names, columns, *values = read_arrays(path, ("images", "classes", *arrays))
    for array, value in zip(arrays, values, strict=True):
        shape = (len(names), *value.shape[1 : 2 if array == "tiles" else 1], len(columns))
        if names.dtype.kind + columns.dtype.kind + value.dtype.kind != "UUf" or value.shape != shape or 0 in shape:
            found = ", ".join(f"{part.dtype} {part.shape}" for part in (names, columns, value))
            raise UserError(
                f"{path}: expected images (N,) and classes (L,) of strings, and {array} "
                f"{'(N, K, L)' if array == 'tiles' else '(N, L)'} of floats; found {found}"
            )
    rows = find_rows(path, "image", images.tolist(), names.tolist(), values, root)
    by_class = [np.moveaxis(value, -1, 0) for value in values]
    chosen = find_rows(path, "class", classes, columns.tolist(), by_class, root)
    values = [value[rows][..., chosen] for value in values]
    if not all((np.abs(value) <= LARGEST).all() for value in values):
        raise UserError(f"{path}: expected finite similarities of at most {LARGEST:g}: cosines in [-1, 1], or logits")
    return values
