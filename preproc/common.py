"""What the formatting scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets import DATASETS
from datasets.files import observe_command
from util.errors import OneLineParser, UserError


def format_parser(about: str, name: str, load_help: str) -> argparse.ArgumentParser:
    parser = OneLineParser(about)
    parser.add_argument("--load-path", default=f"data/{name}", help=f"{load_help} (default: %(default)s)")
    parser.add_argument("--save-path", default=f"data/{name}", help="folder to write to (default: %(default)s)")
    return parser


def find_folder(load_path: str, below: Sequence[str], holds: str, name: str) -> Path:
    """The first of load_path/below that holds a file or folder; raises UserError where none does."""
    for part in below:
        if (Path(load_path) / part / holds).exists():
            return Path(load_path) / part
    raise UserError(
        f"{Path(load_path) / below[0] / holds} not found; fetch it with `python preproc/download.py --dataset {name}`, "
        "or name its folder with --load-path"
    )


def report(name: str, save_path: str | Path, splits: dict[str, tuple[Sequence[str], np.ndarray]]) -> None:
    """Print what was written beside what a complete data set has, and what comes next."""
    known = DATASETS[name]
    for split, (images, labels) in splits.items():
        found = {"images": len(images), "labels": labels.shape[1]}
        expected = {"images": known.train if split == "train" else known.test, "labels": known.labels}
        counts = ", ".join(f"{found[what]:,} {what} (expected {expected[what]:,})" for what in found)
        print(f"{split}: {counts}, {labels.sum(axis=1).mean():.2f} positives per image")
        for what in found:
            if found[what] != expected[what]:
                print(
                    f"WARNING: {split} has {found[what]:,} {what}, but {name} has {expected[what]:,}: is it complete?"
                )
    command = observe_command(Path(save_path)).removeprefix("make it with ")
    print(f"written to {save_path}; next: {command}")
