"""CUB-200-2011's attribute labels -> data/cub/.

    python preproc/format_cub.py [--load-path data/cub] [--save-path data/cub]

The labels are the 312 attributes, of which about 31 are present in an image (Cole et al. 2021).
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from preproc.common import fetch_hint, first_folder, format_published
from util.errors import UserError, run_script
from util.files import read_text


def read_pairs(path: Path) -> dict[int, str]:
    """A file of lines "number text" as {number: text}, in the order of the numbers."""
    lines = [line.split(None, 1) for line in read_text(path, fetch_hint("cub")).splitlines() if line.strip()]
    return dict(sorted((int(number), text.strip()) for number, text in lines))


def read_labels(path: Path, images: list[int], attributes: list[int]) -> np.ndarray:
    """(N, L) int8 in {0, 1}: every attribute of every image, both given as ascending numbers.

    A line begins with image, attribute, is_present; a few lines of the original file carry extra columns.
    """
    marks = np.loadtxt(path, usecols=range(3), dtype=np.int64, ndmin=2, comments=None, encoding="utf-8")
    labels = np.full((len(images), len(attributes)), -1, dtype=np.int8)
    labels[np.searchsorted(images, marks[:, 0]), np.searchsorted(attributes, marks[:, 1])] = marks[:, 2]
    if missing := int(np.count_nonzero(labels < 0)):
        raise UserError(f"{path} lacks {missing:,} of {labels.size:,} labels; {fetch_hint('cub')}")
    return labels


def prompt_name(attribute: str) -> str:
    """`has_bill_shape::curved_(up_or_down)` -> `curved (up or down) bill shape`, to follow "a bird with"."""
    part, _, value = attribute.partition("::")
    part, value = (words.replace("_", " ").strip() for words in (part.removeprefix("has_"), value))
    return f"{value} {part}".strip()


def read(load_path: Path) -> tuple:
    folder = first_folder(load_path, ("CUB_200_2011",), "images.txt")
    images, is_train = read_pairs(folder / "images.txt"), read_pairs(folder / "train_test_split.txt")
    # the archive holds attributes.txt beside the CUB_200_2011 folder
    attributes = read_pairs(first_folder(folder, ("..", "attributes"), "attributes.txt") / "attributes.txt")
    labels = read_labels(folder / "attributes/image_attribute_labels.txt", list(images), list(attributes))
    splits, paths = {}, list(images.values())
    for split, mark in (("train", "1"), ("val", "0")):
        rows = [row for row, number in enumerate(images) if is_train[number] == mark]
        splits[split] = ([paths[row] for row in rows], labels[rows])
    names = list(attributes.values())
    return splits, names, [prompt_name(name) for name in names], folder / "images"


main = partial(format_published, __doc__, "cub", "folder that holds CUB_200_2011/", read)

if __name__ == "__main__":
    run_script(main)
