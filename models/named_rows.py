"""Arrays of other programs, whose rows are found by the names of images or classes."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

import numpy as np

from util.errors import UserError


def find_rows(
    path: str | Path, what: str, wanted: list[str], present: list[str], arrays: Iterable[np.ndarray], root: str | Path
) -> list[int]:
    """The position of each wanted name among those present.

    A name that is absent is found by its file name if this is unique on both sides; a line counts such names. A file
    below `root`, the folder of the wanted images, is a different image and is not taken.

    what    image or class, for messages
    arrays  those with a row for each name present: rows of the same name must be equal
    Raises UserError for the first name that is absent, and for rows that contradict each other.
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
