"""CUB-200-2011's attribute labels -> data/cub/ (formatted arrays, classes.json, source.json).

    python preproc/format_cub.py [--load-path data/cub] [--save-path data/cub]

The labels are the 312 attributes, of which about 31 are present in an image (Cole et al. 2021).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from datasets.files import write_formatted
from preproc.common import find_folder, format_parser, report
from util.errors import UserError, run_script, why

FETCH = "fetch it with `python preproc/download.py --dataset cub`"


def read_pairs(path: Path) -> dict[int, str]:
    """A file of lines "number text" as {number: text}."""
    try:
        lines = [line.split(None, 1) for line in path.read_text().splitlines() if line.strip()]
        return {int(number): text.strip() for number, text in lines}
    except FileNotFoundError:
        raise UserError(f"{path} not found; {FETCH}") from None
    except ValueError:
        raise UserError(f"{path}: every line must be a number and a text") from None


def read_marks(path: Path) -> np.ndarray:
    """(rows, 3) int64: image, attribute, is_present. A few lines of the original file carry extra columns."""
    try:
        return np.loadtxt(path, usecols=range(3), dtype=np.int64, ndmin=2)
    except FileNotFoundError:
        raise UserError(f"{path} not found; {FETCH}") from None
    except ValueError as error:
        raise UserError(f"{path}: every line must begin with three whole numbers ({why(error)})") from None


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
    attributes = read_pairs(next((path for path in places if path.exists()), places[0]))

    path = folder / "attributes/image_attribute_labels.txt"
    marks = read_marks(path)
    if not images or not attributes:
        raise UserError(f"{folder}/images.txt or attributes.txt is empty; {FETCH}")
    numbers = np.array(sorted(images))
    labels = np.full((max(images) + 1, max(attributes) + 1), -1, dtype=np.int8)
    if not ((marks >= 0) & (marks < (*labels.shape, 2))).all():
        raise UserError(f"{path}: a line names an unknown image or attribute, or is_present is not 0 or 1")
    labels[marks[:, 0], marks[:, 1]] = marks[:, 2]
    labels = labels[np.ix_(numbers, sorted(attributes))]
    if (labels < 0).any():
        row, column = np.argwhere(labels < 0)[0]
        raise UserError(f"{path} says nothing of image {numbers[row]}, attribute {sorted(attributes)[column]}")
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
