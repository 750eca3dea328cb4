"""Pascal VOC 2012's label lists -> data/pascal/.

    python preproc/format_pascal.py [--load-path data/pascal] [--save-path data/pascal]

A label is positive if its mark in {class}_{split}.txt is 1; 0 ("difficult") counts as negative (Cole et al. 2021).
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from preproc.common import fetch_hint, first_folder, format_published
from util.errors import run_script
from util.files import read_text

# the order of the label columns, and the one-word names of VLPL's published prompts
CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()


def read_split(folder: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Image files, sorted by name, and (N, 20) int8 labels in {0, 1}."""
    columns = []
    for name in CLASSES:
        lines = read_text(folder / f"ImageSets/Main/{name}_{split}.txt", fetch_hint("pascal")).splitlines()
        columns.append({image: mark == "1" for image, mark in map(str.split, filter(str.strip, lines))})
    names = sorted(columns[0])
    labels = np.array([[column[name] for column in columns] for name in names], dtype=np.int8)
    return [f"{name}.jpg" for name in names], labels


def read(load_path: Path) -> tuple:
    folder = first_folder(load_path, ("VOCdevkit/VOC2012", "VOC2012"), "ImageSets")
    return {split: read_split(folder, split) for split in ("train", "val")}, CLASSES, CLASSES, folder / "JPEGImages"


main = partial(format_published, __doc__, "pascal", "folder that holds VOCdevkit/VOC2012", read)

if __name__ == "__main__":
    run_script(main)
