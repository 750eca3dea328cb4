"""Fetch the weights of the teacher and of backbones into the caches of their libraries, for machines without internet.

python models/download.py teacher resnet50 ...

Weights that are cached already are not fetched again.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder, whose names are other modules

import models
from models.clip import DEFAULT, DEFAULT_WEIGHTS, clip_file
from util.errors import OneLineParser, run_script


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"teacher, {', '.join(models.BACKBONES)}, timm:NAME, clip:NAME:TAG"
    )
    names = parser.parse_args(argv).names
    for name in set(names) - {"teacher"}:
        models.check_name(name)
    for name in names:
        if name == "teacher":
            print(f"{name}: {clip_file(DEFAULT, DEFAULT_WEIGHTS)}")
        else:
            models.build(name, 1, image_size=models.settings_of(name).get("image_size", 224))
            print(f"{name}: ready")


if __name__ == "__main__":
    run_script(main)
