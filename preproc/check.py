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

ROWS = 4096  # checked at a time: a check of the whole matrix would take several times its memory


def check_arrays(splits: dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]], classes: files.Classes) -> None:
    """Raises UserError if {split: (images, full labels, observed labels)} and the classes do not fit together."""
    check_unique(
        chain(*(images.tolist() for images, _, _ in splits.values())), "the image", "list it once, in one split"
    )
    names = classes.names
    check_unique(names, "the class", "rename or remove one")
    if len(classes.prompt_names) != len(names):
        raise UserError(f"{len(names)} classes need as many prompt names, not {len(classes.prompt_names)}")
    for split, (images, true, observed) in splits.items():
        shape, shapes = (len(images), len(names)), [part.shape for part in (true, observed) if part is not None]
        if set(shapes) != {shape}:
            raise UserError(f"the labels of {split} have the shapes {shapes}; expected {shape}: images and classes")
        for row in range(0, len(images), ROWS):
            known = observed[row : row + ROWS]
            full = known == 1 if true is None else true[row : row + ROWS]
            if not (np.isin(known, (-1, 0, 1)) & np.isin(full, (0, 1)) & (known * (2 * full - 1) >= 0)).all():
                raise UserError(
                    f"the full labels of {split} must be 0 or 1, and the observed ones 0, or 1 and -1 as the full "
                    "labels are 1 and 0"
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
        bad |= {str(root / image): problem for image, problem in found.items()}
    if bad:
        print(describe_bad_images(bad, "\n"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
