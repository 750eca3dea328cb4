"""The check of a data set's arrays, made once: when the files are written, and by preproc/check.py."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from util.errors import UserError

ROWS = 4096  # checked at a time: a check of the whole matrix would take several times its memory


def check(
    splits: dict[str, tuple[Sequence[str], np.ndarray | None, np.ndarray | None]],
    names: Sequence[str],
    prompt_names: Sequence[str],
) -> None:
    """Raises UserError if {split: (images, full labels, observed labels)} and the class names do not fit together."""
    if twice := duplicate(name for images, _, _ in splits.values() for name in images):
        raise UserError(f"the image {str(twice)!r} is listed twice, in one split or in two")
    for wrong in (name for images, _, _ in splits.values() for name in images if not is_file_name(name)):
        raise UserError(f"{str(wrong)!r} is no name of a file")
    if (twice := duplicate(names)) or not all(map(is_class_name, (*names, *prompt_names))):
        raise UserError(f"the class {twice!r} is named twice" if twice else "a class has an empty name")
    if len(prompt_names) != len(names):
        raise UserError(f"there are {len(names)} names of classes and {len(prompt_names)} prompt names")
    for split, (images, true, observed) in splits.items():
        for kind, labels, lowest in (("full", true, 0), ("observed", observed, -1)):
            if labels is None:
                continue
            if labels.shape != (len(images), len(names)):
                raise UserError(
                    f"the {kind} labels of {split} have the shape {labels.shape}, but there are {len(images)} images "
                    f"and {len(names)} classes"
                )
            for row in range(0, len(labels), ROWS):
                if not np.isin(labels[row : row + ROWS], range(lowest, 2)).all():
                    raise UserError(f"the {kind} labels of {split} must be whole numbers from {lowest} to 1")
        for row in range(0, len(images) if true is not None and observed is not None else 0, ROWS):
            given, full = observed[row : row + ROWS], true[row : row + ROWS]
            if (given * (2 * full - 1) < 0).any():
                raise UserError(f"the observed labels of {split} contradict its full labels; draw them again")
    if "train" not in splits or not len(splits["train"][0]):
        raise UserError("there are no training images")


def is_file_name(name: str) -> bool:
    """Whether a file can have this name: surrogates that stand for bytes are allowed, others and NUL are not."""
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_class_name(name: str) -> bool:
    return bool(name.strip()) and "\0" not in name


def duplicate(names: Iterable[str]) -> str | None:
    """The first name that is listed twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
