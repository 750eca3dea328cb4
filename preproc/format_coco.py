"""COCO 2014's instance annotations -> data/coco/.

    python preproc/format_coco.py [--load-path data/coco] [--save-path data/coco]

Images without an annotation are dropped, and image ids are sorted as strings: both decide the split and the single
positives (Cole et al. 2021).
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from preproc.annotations import read_instances
from preproc.common import fetch_hint, format_published
from util.errors import run_script


def read_split(folder: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """Image files, (N, L) int8 labels in {0, 1}, and category names in the order of the file."""
    content = read_instances(folder / f"annotations/instances_{split}2014.json", fetch_hint("coco"))
    ids = sorted({annotation.image_id for annotation in content.annotations}, key=str)
    row = {image: place for place, image in enumerate(ids)}
    column = {category.id: place for place, category in enumerate(content.categories)}
    labels = np.zeros((len(ids), len(column)), dtype=np.int8)
    for annotation in content.annotations:
        labels[row[annotation.image_id], column[annotation.category_id]] = 1
    images = [f"{split}2014/COCO_{split}2014_{image:012d}.jpg" for image in ids]
    return images, labels, [category.name for category in content.categories]


def read(folder: Path) -> tuple:
    (*train, names), (*val, _) = (read_split(folder, split) for split in ("train", "val"))
    return {"train": train, "val": val}, names, names, folder


main = partial(format_published, __doc__, "coco", "folder that holds annotations/, train2014/ and val2014/", read)

if __name__ == "__main__":
    run_script(main)
