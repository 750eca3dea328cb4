"""A file of similarities: another program's teacher."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from models.teachers.base import Teacher
from util.errors import UserError
from util.files import local_file, read_arrays

LARGEST = 1e6  # of a similarity: beyond it, even a temperature of 1 leaves one label with all of the softmax


@dataclass(frozen=True)
class FileTeacher(Teacher):
    """similarity: npz file as `load_similarity` reads it.  teacher_views: global; tiles: also its array `tiles` or
    `tiles_max`."""

    similarity: str
    teacher_views: str = "global"
    scores_new_images = False

    def similarities(self, split: MultiLabelDataset, classes: Classes, *_: object, **__: object) -> list[np.ndarray]:
        """Of tiles (N, K, L), with K = 1 for their maximum alone."""
        result = [load_similarity(self.similarity, split.names, classes.names)]
        if self.teacher_views == "tiles":
            with zipfile.ZipFile(local_file(self.similarity)) as file:
                array = "tiles" if "tiles.npy" in file.namelist() else "tiles_max"
            tiles = load_similarity(self.similarity, split.names, classes.names, array)
            result.append(tiles if tiles.ndim == 3 else tiles[:, None])
        return result


def load_similarity(path: str | Path, images: np.ndarray, classes: list[str], array: str = "similarity") -> np.ndarray:
    """(N, L) float similarities of `images` and `classes` from an npz file of `images`, `classes`, `similarity`.

    array  another array of the same images and classes: `tiles_max`, the largest over the tiles of an image, each less
           its own mean over the classes; or `tiles`, (N, K, L) of K tiles
    Rows are found by image name and columns by class name, so order and surplus do not matter. Raises UserError for
    a file that is not such a file, and for the first image or class that it lacks.
    """
    path = local_file(str(path)) or path
    names, columns, similarity = read_arrays(path, ("images", "classes", array))
    for what, strings in (("images", names), ("classes", columns)):
        if strings.ndim != 1 or strings.dtype.kind != "U":
            raise UserError(
                f"{path}: {what} is {strings.dtype} of shape {strings.shape}, expected strings of shape (N,)"
            )
    ends, dims = similarity.shape[:1] + similarity.shape[-1:], 3 if array == "tiles" else 2
    if (
        ends != (len(names), len(columns))
        or similarity.ndim != dims
        or similarity.dtype.kind != "f"
        or 0 in similarity.shape
    ):
        raise UserError(
            f"{path}: {array} is {similarity.dtype} {similarity.shape}, expected float of "
            f"{len(names)} images x {'tiles x ' if array == 'tiles' else ''}{len(columns)} classes"
        )
    rows = _positions(path, "row for the image", images.tolist(), names, similarity, "of the images")
    columns = _positions(
        path, "column for the class", classes, columns, np.moveaxis(similarity, -1, 0), "of the classes"
    )
    chosen = similarity[rows][..., columns]
    if (wrong := ~(np.abs(chosen) <= LARGEST).reshape(len(chosen), -1).all(axis=1)).any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path}: the similarities of {images[row]} are not all finite numbers of at most {LARGEST:g}; cosines are "
            "expected, in [-1, 1], or logits"
        )
    return chosen


def _positions(
    path: str | Path, what: str, wanted: list[str], present: np.ndarray, values: np.ndarray, of_which: str
) -> list[int]:
    """Where each wanted name is among those present; values: one row for each of these."""
    where: dict[str, int] = {}
    for position, name in enumerate(present.tolist()):
        first = where.setdefault(name, position)
        if first != position and not np.array_equal(values[first], values[position], equal_nan=True):
            raise UserError(f"{path} has more than one {what} {name!r}, and they contradict each other")
    absent = [name for name in wanted if name not in where]
    if absent:
        raise UserError(f"{path} has no {what} {absent[0]!r} ({len(absent):,} {of_which} are missing)")
    return [where[name] for name in wanted]
