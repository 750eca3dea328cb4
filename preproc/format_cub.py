"""CUB-200-2011's attribute labels -> data/cub/ (formatted arrays, classes.json, source.json).

    python preproc/format_cub.py [--load-path data/cub] [--save-path data/cub]

The labels are the 312 attributes, of which about 31 are present in an image (Cole et al. 2021).
"""

import sys
import warnings
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from datasets.files import duplicate, write_formatted
from preproc.common import find_folder, format_parser, report
from util.errors import UserError, describe_error, run_script
from util.files import open_regular, read_text

FETCH = "fetch it with `python preproc/download.py --dataset cub`"
DIGITS = 9  # of a number


def read_pairs(path: Path) -> dict[int, str]:
    """A file of lines "number text" as {number: text}, at least one."""
    found: dict[int, str] = {}
    for line, content in enumerate(read_text(path, FETCH).splitlines(), 1):
        if not content.strip():
            continue
        number, *text = content.split(None, 1)
        if not text or not (number.isascii() and number.isdecimal() and len(number) <= DIGITS):
            raise UserError(f"{path}, line {line}: every line must be a number and a text; {FETCH}")
        if int(number) in found:
            raise UserError(f"{path}, line {line}: the number {number} is there for the second time; {FETCH}")
        found[int(number)] = text[0].strip()
    if not found:
        raise UserError(f"{path} is empty; {FETCH}")
    return found


def read_marks(path: Path) -> np.ndarray:
    """(rows, 3) int64: image, attribute, is_present. A few lines of the original file carry extra columns."""
    with open_regular(path, FETCH) as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy only warns of a file without lines
        try:
            return np.loadtxt(file, usecols=range(3), dtype=np.int64, ndmin=2, comments=None, encoding="utf-8")
        except (ValueError, Warning) as error:
            raise UserError(
                f"{path}: every line must begin with three whole numbers ({describe_error(error)}); {FETCH}"
            ) from None


def line_of(path: Path, row: int) -> int:
    """The number of the line of a row: lines without content are no rows."""
    with open(path, encoding="utf-8") as file:
        return next(islice((number for number, line in enumerate(file, 1) if line.strip()), row, None))


def read_labels(path: Path, images: list[int], attributes: list[int]) -> np.ndarray:
    """(N, L) int8 in {0, 1}: every attribute of every image, both given as ascending numbers."""
    marks = read_marks(path)
    rows, columns = np.searchsorted(images, marks[:, 0]), np.searchsorted(attributes, marks[:, 1])
    known = np.isin(marks[:, 0], images) & np.isin(marks[:, 1], attributes) & np.isin(marks[:, 2], (0, 1))
    if not known.all():
        row = int(np.argmin(known))
        raise UserError(
            f"{path}, line {line_of(path, row)}: it names an unknown image or attribute, or is_present is not 0 or 1"
        )
    cells = rows * len(attributes) + columns
    first = np.unique(cells, return_index=True)[1]
    if len(first) < len(cells):
        row = int(np.setdiff1d(np.arange(len(cells)), first)[0])
        raise UserError(f"{path}, line {line_of(path, row)}: this image and attribute are there for the second time")
    labels = np.full(len(images) * len(attributes), -1, dtype=np.int8)
    labels[cells] = marks[:, 2]
    labels = labels.reshape(len(images), len(attributes))
    if (labels < 0).any():
        row, column = np.argwhere(labels < 0)[0]
        raise UserError(f"{path} says nothing of image {images[row]}, attribute {attributes[column]}")
    return labels


def prompt_name(attribute: str) -> str:
    """`has_bill_shape::curved_(up_or_down)` -> `curved (up or down) bill shape`, to follow "a bird with"."""
    part, _, value = attribute.partition("::")
    part, value = (words.replace("_", " ").strip() for words in (part.removeprefix("has_"), value))
    return f"{value} {part}".strip()


def main(argv: list[str] | None = None) -> None:
    options = format_parser(__doc__, "cub", "folder that holds CUB_200_2011/").parse_args(argv)
    folder = find_folder(options.load_path, ("CUB_200_2011", "."), "attributes/image_attribute_labels.txt", "cub")
    images = read_pairs(folder / "images.txt")
    is_train = read_pairs(folder / "train_test_split.txt")
    # the archive holds attributes.txt beside the CUB_200_2011 folder
    places = [folder.parent / "attributes.txt", folder / "attributes.txt", folder / "attributes/attributes.txt"]
    attributes_path = next((path for path in places if path.exists()), places[0])
    attributes = read_pairs(attributes_path)
    for what, texts in (("images.txt", images), (attributes_path.name, attributes)):
        if twice := duplicate(texts.values()):
            raise UserError(f"{folder}: {what} names {twice} twice; {FETCH}")
    numbers = sorted(images)
    labels = read_labels(folder / "attributes/image_attribute_labels.txt", numbers, sorted(attributes))
    if is_train.keys() != images.keys() or not set(is_train.values()) <= {"0", "1"}:
        raise UserError(f"{folder}/train_test_split.txt must give 0 or 1 to each image of images.txt")

    splits = {}
    for split, mark in (("train", "1"), ("val", "0")):
        rows = [row for row, number in enumerate(numbers) if is_train[number] == mark]
        splits[split] = ([images[numbers[row]] for row in rows], labels[rows])
    names = [attributes[number] for number in sorted(attributes)]
    write_formatted(options.save_path, splits, names, [prompt_name(name) for name in names], folder / "images")
    report("cub", options.save_path, splits)


if __name__ == "__main__":
    run_script(main)
