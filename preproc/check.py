"""Read every image of a formatted data set and list those that are missing, truncated or not images.

    python preproc/check.py --dataset NAME [--data-root data] [--image-root DIR]

Prints one line for each bad image and one for each split. Exit status 2 if there is a bad one.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from datasets.files import SPLITS, VALIDATION, has_split, image_root, read_images
from datasets.images import ahead, decode
from util.errors import OneLineParser, UserError, run_script


def problem(path: str) -> str | None:
    """One line on what is wrong with an image, or None."""
    try:
        decode(path, 8)
    except UserError as error:
        return " ".join(str(error).rsplit("; ", 1)[0].split())
    return None


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--dataset", required=True, help="folder below the data root")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--image-root", help="where the images lie, if not where the formatted files say")
    options = parser.parse_args(argv)
    folder = Path(options.data_root) / options.dataset
    root, bad, workers = image_root(folder, options.image_root), 0, os.cpu_count() or 1
    for split in filter(lambda split: has_split(folder, split), (*SPLITS, VALIDATION)):
        paths = [str(root / name) for name in read_images(folder, split).tolist()]
        found = list(filter(None, tqdm(ahead(problem, paths, workers, 64), total=len(paths), desc=split, disable=None)))
        print("\n".join([*found, f"{split}: {len(found):,} of {len(paths):,} images are bad"]))
        bad += len(found)
    sys.exit(2 if bad else 0)


if __name__ == "__main__":
    run_script(main)
