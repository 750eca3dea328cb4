"""What the formatting scripts share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import DATASETS
from datasets.files import observe_command, write_own
from util.errors import OneLineParser


def whole_number(text: str) -> int:
    """The type of options that take a count or a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number in [0, 4294967296), not {text!r}")
    return int(text)


def fetch_hint(name: str) -> str:
    return f"fetch it with `python preproc/download.py --dataset {name}`, or name its folder with --load-path"


def first_folder(load_path: Path, below: Sequence[str], holds: str) -> Path:
    """The first of load_path/below that holds a file or folder, or else load_path."""
    return next((load_path / part for part in below if (load_path / part / holds).exists()), load_path)


def format_published(
    docstring: str, name: str, load_help: str, read: Callable[[Path], tuple], argv: list[str] | None = None
) -> None:
    """The main function of a script that formats a published data set; it prints counts beside the expected ones.

    read(folder)  returns {split: (images, (N, L) labels in {0, 1})}, names, prompt names and the image root
    """
    parser = OneLineParser(docstring)
    parser.add_argument("--load-path", default=f"data/{name}", help=f"{load_help} (default: %(default)s)")
    parser.add_argument("--save-path", default=f"data/{name}", help="folder to write to (default: %(default)s)")
    options = parser.parse_args(argv)
    splits, *classes_and_root = read(Path(options.load_path))
    write_own(options.save_path, {split: (*arrays, None) for split, arrays in splits.items()}, *classes_and_root)
    spec = DATASETS[name]
    for split, (_, labels) in splits.items():
        (images, classes), expected = labels.shape, (spec.train if split == "train" else spec.test, spec.labels)
        print(
            f"{split}: {images:,} images (expected {expected[0]:,}), {classes:,} labels (expected {expected[1]:,}), "
            f"{labels.sum(axis=1).mean():.2f} positives per image"
        )
        if labels.shape != expected:
            print(f"WARNING: {split} differs from the published counts of {name}: is the download complete?")
    print(f"written to {options.save_path}; next: {observe_command(options.save_path)}")
