"""Check a formatted data set: its arrays, and that every image can be decoded.

    python preproc/check.py --dataset NAME [--data-root data] [--image-root DIR]

Lists the bad images on stderr. Exit status 2 if there is one.
"""

import sys
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import datasets
from datasets import files
from datasets.images import describe_bad_images, find_bad_images
from datasets.pixels import accept_truncated
from preproc.sources import check_unique
from util.errors import OneLineParser, UserError, run_script


def check_arrays(splits: dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]], classes: files.Classes) -> None:
    """Raises UserError if {split: (images, full labels, observed labels)} and the classes do not fit together."""
    check_unique(chain(*(images.tolist() for images, _, _ in splits.values())), "the image", "it belongs to one split")
    names = classes.names
    if not len(set(names)) == len(names) == len(classes.prompt_names):
        raise UserError(f"{len(names)} classes need as many different names and prompt names; not {names}")
    for split, (images, true, observed) in splits.items():
        full, shape = observed == 1 if true is None else true, (len(images), len(names))
        fits = full.shape == observed.shape == shape and ((full == 0) | (full == 1)).all()
        if not fits or not np.isin(observed * (2 * full.astype(np.int8) - 1), (0, 1)).all():
            raise UserError(
                f"the labels of {split} must have the shape {shape}, as there are {shape[0]} images and {shape[1]} "
                "classes; full labels must be 0 or 1, and observed ones 0, or 1 and -1 as the full ones are 1 and 0"
            )


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("-d", "--dataset", required=True, help="folder below the data root")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--image-root", help="folder of the images, if not the one named in dataset.json")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    options = parser.parse_args(argv)
    accept_truncated(options.truncated)
    folder = Path(options.data_root) / options.dataset
    datasets.prepare(folder)
    splits, root = files.read_all(folder), files.image_root(folder, options.image_root)
    check_arrays(splits, files.read_classes(folder))
    if not any((root / name).exists() for images, _, _ in splits.values() for name in images.tolist()):
        raise UserError(
            f"{folder} has no pixels to check: none of its images is below {root}. Its labels are in order; if it has "
            "image files, name their folder with --image-root DIR"
        )
    bad = {}
    for split, (images, _, _) in splits.items():
        name = "test" if split == "val" else split
        found = find_bad_images(images.tolist(), root, name)
        print(f"{name}: {len(found):,} of {len(images):,} images are bad")
        bad |= found
    if bad:
        print(describe_bad_images(bad, "\n"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
