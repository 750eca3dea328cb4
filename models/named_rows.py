"""npz files of other programs: rows are found by the names of images, columns by the names of classes."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from util.errors import UserError
from util.files import read_arrays, reading

# axes of the arrays of a file: N images, L classes, K tiles of an image, D features
SHAPES = dict(images="N", classes="L", similarity="NL", tiles="NKL", tiles_max="NL", features="ND", mirrored="ND")
LARGEST_FLOAT = np.finfo(np.float32).max


def names_of_arrays(path: str | Path) -> list[str]:
    """The names of the arrays in an npz file."""
    with reading(path, "an npz file"), np.load(path) as file:
        return file.files


def read_rows(
    path: str | Path,
    arrays: Sequence[str],
    images: list[str],
    root: str | Path,
    classes: list[str] | None = None,
    largest: np.float32 = LARGEST_FLOAT,
) -> list[np.ndarray]:
    """Arrays of floats, by their names in SHAPES, with a row for each of the images and a column for each of the
    classes, from an npz file that names its own rows in `images` and its columns in `classes`.

    root     folder of the images
    classes  None: all columns, which have no names
    largest  magnitude that no number may exceed
    Raises UserError for a file that does not fit, and for the first image or class that it lacks.
    """
    keys = ["images"] if classes is None else ["images", "classes"]
    hint = "without scores of tiles, give --teacher-views global" if "tiles_max" in arrays else ""
    read = dict(zip([*keys, *arrays], read_arrays(path, [*keys, *arrays], hint), strict=True))
    kinds = all((array.dtype.kind == "U") == (name in keys) for name, array in read.items())
    complete = all(array.ndim == len(SHAPES[name]) and array.size for name, array in read.items())
    axes = {axis for name, array in read.items() for axis in zip(SHAPES[name], array.shape, strict=False)}
    if not kinds or not complete or len(dict(axes)) < len(axes):  # the last: an axis has two sizes
        expected = ", ".join(f"{name} ({', '.join(SHAPES[name])})" for name in read)
        found = ", ".join(f"{array.dtype} {array.shape}" for array in read.values())
        raise UserError(f"{path}: expected {expected}, of numbers, and strings for {' and '.join(keys)}; found {found}")
    values = [read[name] for name in arrays]
    rows = find_rows(path, "image", images, read["images"].tolist(), values, root)
    values = [value[rows] for value in values]
    if classes is not None:
        by_class = [np.moveaxis(value, -1, 0) for value in values]
        columns = find_rows(path, "class", classes, read["classes"].tolist(), by_class, root)
        values = [value[..., columns] for value in values]
    if not all((np.abs(value) <= largest).all() for value in values):
        raise UserError(f"{path}: expected finite numbers of at most {largest:g} in {' and '.join(arrays)}")
    return [value if value.dtype.kind == "f" else value.astype(np.float32) for value in values]


def find_rows(
    path: str | Path, what: str, wanted: list[str], present: list[str], arrays: Iterable[np.ndarray], root: str | Path
) -> list[int]:
    """The position of each wanted name among those present.

    A name that is absent is found by its file name if this is unique on both sides; a line counts such names. A file
    below `root`, the folder of the wanted images, is a different image and is not taken.

    what    image or class, for messages
    arrays  those with a row for each name present: rows of the same name must be equal
    """
    rows = {name: row for row, name in reversed([*enumerate(present)])}  # the first of several
    if len(rows) < len(present):
        first = [rows[name] for name in present]
        if not all(np.array_equal(array, array[first], equal_nan=True) for array in arrays):
            raise UserError(f"{path} has rows for the same {what} that contradict each other; keep one for each {what}")
    if absent := [name for name in wanted if name not in rows]:
        ours, theirs = _by_file_name(wanted), _by_file_name(rows)
        found = {ours[name]: theirs[name] for name in ours.keys() & theirs.keys() if ours[name] not in rows}
        found = {name: other for name, other in found.items() if not os.path.isfile(f"{root}/{other}")}
        if missing := [name for name in absent if name not in found]:
            raise UserError(f"{path} has no row for the {what} {missing[0]!r} ({len(missing):,} are missing)")
        print(f"note: {len(found):,} {what} names were found in {path} by file name, {absent[0]} as {found[absent[0]]}")
        rows |= {name: rows[other] for name, other in found.items()}
    return [rows[name] for name in wanted]


def _by_file_name(names: Iterable[str]) -> dict[str, str]:
    """{file name: name} for each file name that only one of the names has."""
    pairs = [(PureWindowsPath(name).name, name) for name in names]  # which knows both separators
    counts = Counter(file for file, _ in pairs)
    return {file: name for file, name in pairs if counts[file] == 1}
