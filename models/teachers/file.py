"""A file of similarities: another program's teacher."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.errors import UserError
from util.files import read_arrays

LARGEST = 1e6  # of a similarity: beyond it, even a temperature of 1 leaves one label with all of the softmax


@dataclass(frozen=True)
class FileTeacher:
    """path: npz file of `images`, `classes` and `similarity`, as `load_similarity` reads it."""

    path: str


def load_similarity(path: str | Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    """(N, L) float similarities of `images` and `classes` from an npz file of `images`, `classes`, `similarity`.

    Rows are found by image name and columns by class name, so order and surplus do not matter. Raises UserError for
    a file that is not such a file, and for the first image or class that it lacks.
    """
    names, columns, similarity = read_arrays(path, ("images", "classes", "similarity"))
    for what, array in (("images", names), ("classes", columns)):
        if array.ndim != 1 or array.dtype.kind != "U":
            raise UserError(f"{path}: {what} is {array.dtype} of shape {array.shape}, expected strings of shape (N,)")
    if similarity.shape != (len(names), len(columns)) or similarity.dtype.kind != "f":
        raise UserError(
            f"{path}: similarity is {similarity.dtype} {similarity.shape}, expected float of "
            f"{len(names)} images x {len(columns)} classes"
        )
    rows = _positions(path, "row for the image", images.tolist(), names, similarity, "of the training images")
    columns = _positions(path, "column for the class", classes, columns, similarity.T, "of the classes")
    chosen = similarity[np.ix_(rows, columns)]
    if (wrong := ~(np.abs(chosen) <= LARGEST).all(axis=1)).any():
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
