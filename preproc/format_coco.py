"""COCO 2014's instance annotations -> data/coco/ (formatted arrays, classes.json, source.json).

    python preproc/format_coco.py [--load-path data/coco] [--save-path data/coco]

Images without an annotation are dropped, and image ids are sorted as strings: both decide the split and the single
positives (Cole et al. 2021).
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from datasets.files import duplicate, write_formatted
from preproc.common import find_folder, format_parser, report
from util.errors import UserError, run_script
from util.files import read_json

FETCH = "fetch it with `python preproc/download.py --dataset coco`"
LIMIT = 4 * 2**30  # bytes; the published files have less than one tenth of it
ImageId = Annotated[int, msgspec.Meta(ge=0, lt=10**12)]  # twelve digits of a file's name
CategoryId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Image(msgspec.Struct):
    id: ImageId


class Annotation(msgspec.Struct):
    image_id: ImageId
    category_id: CategoryId


class Category(msgspec.Struct):
    id: CategoryId
    name: str


class Instances(msgspec.Struct):
    """The part of an instances file that matters here; the decoder skips the rest, segmentations above all."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def read_split(folder: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """Image files, (N, L) int8 labels in {0, 1}, and category names in the order of the file."""
    path = folder / f"annotations/instances_{split}2014.json"
    content = read_json(path, Instances, FETCH, LIMIT)
    if not content.annotations:
        raise UserError(f"{path} has no annotations; {FETCH}")
    for what in ("id", "name"):
        if (twice := duplicate(getattr(category, what) for category in content.categories)) is not None:
            raise UserError(f"{path} has two categories of the {what} {twice!r}; {FETCH}")
    column = {category.id: position for position, category in enumerate(content.categories)}
    known = {image.id for image in content.images}
    for number, annotation in enumerate(content.annotations):
        if annotation.category_id not in column or annotation.image_id not in known:
            raise UserError(
                f"{path}: annotation {number} names image {annotation.image_id} and category {annotation.category_id}, "
                f"of which it does not list both; {FETCH}"
            )
    ids = sorted({annotation.image_id for annotation in content.annotations}, key=str)
    row = {image: position for position, image in enumerate(ids)}
    labels = np.zeros((len(ids), len(column)), dtype=np.int8)
    labels[
        [row[annotation.image_id] for annotation in content.annotations],
        [column[annotation.category_id] for annotation in content.annotations],
    ] = 1
    images = [f"{split}2014/COCO_{split}2014_{image:012d}.jpg" for image in ids]
    return images, labels, [category.name for category in content.categories]


def main(argv: list[str] | None = None) -> None:
    options = format_parser(__doc__, "coco", "folder that holds annotations/, train2014/ and val2014/").parse_args(argv)
    folder = find_folder(options.load_path, (".",), "annotations", "coco")
    found = {split: read_split(folder, split) for split in ("train", "val")}
    names = found["train"][2]
    if found["val"][2] != names:
        raise UserError(f"{folder}/annotations: the two files list different categories")
    splits = {split: (images, labels) for split, (images, labels, _) in found.items()}
    write_formatted(options.save_path, splits, names, names, folder)
    report("coco", options.save_path, splits)


if __name__ == "__main__":
    run_script(main)
