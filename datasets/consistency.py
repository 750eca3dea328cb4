"""The check of a data set's arrays: when the files are written, and by preproc/check.py."""

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
    if (twice := duplicate(name for images, _, _ in splits.values() for name in images)) is not None:
        raise UserError(f"the image {str(twice)!r} is listed twice, in one split or in two")
    if (twice := duplicate(names)) is not None or len(prompt_names) != len(names):
        raise UserError(
            f"the classes must have different names and as many prompt names, not {len(names)} names with "
            + (f"{len(prompt_names)} prompt names" if twice is None else f"{twice!r} twice")
        )
    for split, (images, true, observed) in splits.items():
        for kind, labels, lowest in (("full", true, 0), ("observed", observed, -1)):
            if labels is not None and labels.shape != (len(images), len(names)):
                raise UserError(
                    f"the {kind} labels of {split} have the shape {labels.shape}, but there are {len(images)} images "
                    f"and {len(names)} classes"
                )
            for row in range(0, len(images) if labels is not None else 0, ROWS):
                part = labels[row : row + ROWS]
                if (part != part.clip(lowest, 1).astype(np.int8)).any():
                    raise UserError(f"the {kind} labels of {split} must be whole numbers from {lowest} to 1")
        for row in range(0, len(images) if true is not None and observed is not None else 0, ROWS):
            if (observed[row : row + ROWS] * (2 * true[row : row + ROWS] - 1) < 0).any():
                raise UserError(f"the observed labels of {split} contradict its full labels; draw them again")
    if "train" not in splits or not len(splits["train"][0]):
        raise UserError("there are no training images")


def duplicate(names: Iterable[str]) -> str | None:
    """The first name that is listed twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
