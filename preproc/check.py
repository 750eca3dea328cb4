"""Check a formatted data set: its arrays, and that every image can be decoded.

    python preproc/check.py --dataset NAME [--data-root data] [--image-root DIR]

Lists the bad images on stderr. Exit status 2 if there is one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import datasets
from datasets import consistency, files
from datasets.pixels import accept_truncated
from preproc.common import check_images, report_bad
from util.errors import OneLineParser, UserError, run_script

SHOWN_AS = {"train": "train", files.VALIDATION: "validation", "val": "test"}


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("-d", "--dataset", required=True, help="folder below the data root")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--image-root", help="where the images lie, if not where the formatted files say")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    options = parser.parse_args(argv)
    accept_truncated(options.truncated)
    folder = Path(options.data_root) / options.dataset
    datasets.prepare(folder)
    root, splits, classes = (
        files.image_root(folder, options.image_root),
        files.read_all(folder),
        files.read_classes(folder),
    )
    consistency.check(splits, classes.names, classes.prompt_names)
    paths = {split: [str(root / name) for name in images.tolist()] for split, (images, _, _) in splits.items()}
    if not any(Path(path).exists() for found in paths.values() for path in found):
        raise UserError(
            f"{folder} has no pixels to check: none of its images is below {root}. Its labels are in order; if it has "
            "image files, name their folder with --image-root DIR"
        )
    bad = {}
    for split, found in paths.items():
        problems = check_images(SHOWN_AS[split], found)
        print(f"{SHOWN_AS[split]}: {len(problems):,} of {len(found):,} images are bad")
        bad |= {found[row]: problem for row, problem in problems.items()}
    if bad:
        report_bad(bad, folder, sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
