"""Pascal VOC 2012's label lists -> data/pascal/ (formatted arrays, classes.json, source.json).

    python preproc/format_pascal.py [--load-path data/pascal] [--save-path data/pascal]

A label is positive where {class}_{split}.txt says 1; 0 ("difficult") counts as negative (Cole et al. 2021).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from datasets.files import duplicate, write_formatted
from preproc.common import find_folder, format_parser, report
from util.errors import UserError, run_script
from util.files import read_text

FETCH = "fetch it with `python preproc/download.py --dataset pascal`"

# the order of the label columns, and the one-word names of VLPL's published prompts
CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()


def read_list(path: Path) -> tuple[list[str], np.ndarray]:
    """Image names, each once, and marks in {-1, 0, 1} of one {class}_{split}.txt."""
    lines = read_text(path, FETCH).splitlines()
    pairs = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in pairs:
        if len(words) != 2 or words[1] not in ("-1", "0", "1"):
            raise UserError(f"{path}, line {number}: every line must be an image name and -1, 0 or 1; {FETCH}")
    names = [words[0] for _, words in pairs]
    if not names:
        raise UserError(f"{path} names no images; {FETCH}")
    if twice := duplicate(names):
        number = [number for number, words in pairs if words[0] == twice][1]
        raise UserError(f"{path}, line {number}: {twice} is there for the second time; {FETCH}")
    return names, np.array([words[1] for _, words in pairs], dtype=np.int8)


def read_split(folder: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Image files, sorted by name, and (N, 20) int8 labels in {0, 1}. Raises UserError where the lists disagree."""
    lists = {name: read_list(folder / f"ImageSets/Main/{name}_{split}.txt") for name in CLASSES}
    names = lists[CLASSES[0]][0]
    for label, (others, _) in lists.items():
        if others != names:
            raise UserError(
                f"{folder}/ImageSets/Main/{label}_{split}.txt lists other images than {CLASSES[0]}_{split}.txt"
            )
    order = np.argsort(names)
    labels = np.stack([marks == 1 for _, marks in lists.values()], axis=1)
    return [f"{names[row]}.jpg" for row in order], labels[order].astype(np.int8)


def main(argv: list[str] | None = None) -> None:
    options = format_parser(__doc__, "pascal", "folder that holds VOCdevkit/VOC2012").parse_args(argv)
    folder = find_folder(options.load_path, ("VOCdevkit/VOC2012", "VOC2012", "."), "ImageSets/Main", "pascal")
    splits = {split: read_split(folder, split) for split in ("train", "val")}
    write_formatted(options.save_path, splits, CLASSES, CLASSES, folder / "JPEGImages")
    report("pascal", options.save_path, splits)


if __name__ == "__main__":
    run_script(main)
