"""A file of similarities: another program's teacher."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.errors import UserError, why


@dataclass(frozen=True)
class FileTeacher:
    """path: npz file of `images`, `classes` and `similarity`, as `load_similarity` reads it."""

    path: str


def load_similarity(path: str | Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    """(N, L) float similarities of `images` and `classes` from an npz file of `images`, `classes`, `similarity`.

    Rows are found by image name and columns by class name, so order and surplus do not matter. Raises UserError for
    a file that is not such a file, and for the first image or class that it lacks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names, columns, similarity = (file[name] for name in ("images", "classes", "similarity"))
    except Exception as error:  # NumPy, zip and zlib each raise their own
        raise UserError(f"{path} is not an npz file with images, classes and similarity ({why(error)})") from None
    if similarity.shape != (len(names), len(columns)) or similarity.dtype.kind != "f":
        raise UserError(
            f"{path}: similarity is {similarity.dtype} {similarity.shape}, expected float of "
            f"{len(names)} images x {len(columns)} classes"
        )
    rows = _positions(images, names, f"{path} has no row for the image", "of the training images")
    columns = _positions(np.array(classes), columns, f"{path} has no column for the class", "of the classes")
    chosen = similarity[np.ix_(rows, columns)]
    if not np.isfinite(chosen).all():
        row = int(np.flatnonzero(~np.isfinite(chosen).all(axis=1))[0])
        raise UserError(f"{path}: the similarities of {images[row]} are not all finite")
    return chosen


def _positions(wanted: np.ndarray, present: np.ndarray, missing: str, of_what: str) -> list[int]:
    where = {name: position for position, name in enumerate(present.tolist())}
    absent = [name for name in wanted.tolist() if name not in where]
    if absent:
        raise UserError(f"{missing} {absent[0]!r} ({len(absent):,} {of_what} are missing)")
    return [where[name] for name in wanted.tolist()]
