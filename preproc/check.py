"""Check a formatted data set: its arrays, and that every image can be decoded.

    python preproc/check.py --dataset NAME [--data-root data] [--image-root DIR]

Lists the bad images on stderr. Exit status 2 if there is one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import consistency, files
from datasets.images import accept_truncated
from preproc.common import check_images, report_bad
from util.errors import OneLineParser, run_script

SHOWN_AS = {"train": "train", files.VALIDATION: "validation", "val": "test"}


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--dataset", required=True, help="folder below the data root")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--image-root", help="where the images lie, if not where the formatted files say")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    options = parser.parse_args(argv)
    accept_truncated(options.truncated)
    folder = Path(options.data_root) / options.dataset
    root, bad = files.image_root(folder, options.image_root), {}
    splits, classes = files.read_all(folder), files.read_classes(folder)
    consistency.check(splits, classes.names, classes.prompt_names)
    for split, (images, _, _) in splits.items():
        found = check_images(SHOWN_AS[split], [str(root / name) for name in images.tolist()])
        print(f"{SHOWN_AS[split]}: {len(found):,} of {len(images):,} images are bad")
        bad |= {f"{root / str(images[row])}": problem for row, problem in found.items()}
    if bad:
        report_bad(bad, folder, sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
