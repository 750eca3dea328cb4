"""CUB-200-2011's attribute labels -> data/cub/ (formatted arrays, classes.json, source.json).

    python preproc/format_cub.py [--load-path data/cub] [--save-path data/cub]

The labels are the 312 attributes, of which about 31 are present in an image (Cole et al. 2021).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from cli import UserError, run_script
from preproc.common import find_folder, format_parser, report, write_formatted

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


def first_columns(path: Path, count: int) -> np.ndarray:
    """(rows, count) int64: the first `count` columns of a text file of small non-negative integers.

    Lines may carry any number of further columns: a few of the original file do. The file is taken as an array of
    bytes, so that its 3.7 million lines are read in a second, without a loop over them.
    """
    try:
        text = np.frombuffer(path.read_bytes().replace(b"\r", b"").rstrip() + b"\n", dtype=np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path} not found; {FETCH}") from None
    ends = np.flatnonzero((text == ord(" ")) | (text == ord("\t")) | (text == ord("\n")))  # one past each field
    starts = np.append(0, ends[:-1] + 1)
    first = np.append(0, np.flatnonzero(text[ends] == ord("\n"))[:-1] + 1)  # each line's first field
    if (np.diff(np.append(first, len(ends))) < count).any():
        raise UserError(f"{path}: every line must hold at least {count} numbers")
    columns = []
    for column in range(count):
        start, end = starts[first + column], ends[first + column]
        value = np.zeros(len(first), dtype=np.int64)
        for place in range(int((end - start).max(initial=0))):
            here = start + place < end
            digit = text[np.where(here, start + place, 0)].astype(np.int64) - ord("0")
            if (here & ((digit < 0) | (digit > 9))).any():
                raise UserError(f"{path}: column {column + 1} must hold whole numbers separated by one space")
            value = np.where(here, 10 * value + digit, value)
        if (start == end).any():
            raise UserError(f"{path}: column {column + 1} must hold whole numbers separated by one space")
        columns.append(value)
    return np.stack(columns, axis=1)


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
    image, attribute, present = first_columns(path, 3).T
    if not images or not attributes:
        raise UserError(f"{folder}/images.txt or attributes.txt is empty; {FETCH}")
    numbers = np.array(sorted(images))
    labels = np.full((max(images) + 1, max(attributes) + 1), -1, dtype=np.int8)
    if not (image < len(labels)).all() or not (attribute < labels.shape[1]).all() or not (present <= 1).all():
        raise UserError(f"{path}: a line names an unknown image or attribute, or is_present is not 0 or 1")
    labels[image, attribute] = present
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
