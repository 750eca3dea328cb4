"""Check a formatted data set: its arrays, and that every image can be decoded.

    python preproc/check.py --dataset NAME [--data-root data] [--image-root DIR]

Lists the bad images on stderr. Exit status 2 if there is one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import datasets
from datasets import files
from datasets.images import describe_bad_images
from datasets.pixels import accept_truncated
from preproc.common import check_images
from preproc.sources import duplicate
from util.errors import OneLineParser, UserError, run_script

ROWS = 4096  # checked at a time: a check of the whole matrix would take several times its memory


def check_arrays(splits: dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]], classes: files.Classes) -> None:
    """Raises UserError if {split: (images, full labels, observed labels)} and the classes do not fit together."""
    if (twice := duplicate(name for images, _, _ in splits.values() for name in images.tolist())) is not None:
        raise UserError(f"the image {twice!r} is listed twice, in one split or in two")
    names, prompts = classes.names, classes.prompt_names
    if (twice := duplicate(names)) is not None or len(prompts) != len(names):
        twice = f", but {twice!r} is there twice" if twice else ""
        raise UserError(f"{len(names)} classes need as many different names and prompt names{twice}")
    for split, (images, true, observed) in splits.items():
        for kind, labels in (("full", true), ("observed", observed)):
            if labels is not None and labels.shape != (len(images), len(names)):
                raise UserError(
                    f"the {kind} labels of {split} have the shape {labels.shape}, but there are {len(images)} images "
                    f"and {len(names)} classes"
                )
        for row in range(0, len(images), ROWS):
            known = observed[row : row + ROWS]
            full = known == 1 if true is None else true[row : row + ROWS]
            if not (np.isin(known, (-1, 0, 1)) & np.isin(full, (0, 1)) & (known * (2 * full - 1) >= 0)).all():
                raise UserError(
                    f"the full labels of {split} must be 0 or 1, and the observed ones 0 or else 1 and -1 as the full "
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
    paths = {split: [str(root / name) for name in images.tolist()] for split, (images, _, _) in splits.items()}
    if not any(Path(path).exists() for found in paths.values() for path in found):
        raise UserError(
            f"{folder} has no pixels to check: none of its images is below {root}. Its labels are in order; if it has "
            "image files, name their folder with --image-root DIR"
        )
    bad = {}
    for split, found in paths.items():
        name = "test" if split == "val" else split
        problems = check_images(name, found)
        print(f"{name}: {len(problems):,} of {len(found):,} images are bad")
        bad |= {found[row]: problem for row, problem in problems.items()}
    if bad:
        print(describe_bad_images(bad, "\n"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
