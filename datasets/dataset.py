"""One data set class for all: data sets differ in data, not in code."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets import files
from datasets.files import Classes
from datasets.protocol import SEED, observe, split_indices
from util.errors import UserError
from util.files import digest

PIXELS = 3  # version of the rules of pixels.rgb and pixels.squash: caches of other versions are not used


@dataclass(frozen=True)
class MultiLabelDataset:
    """One split: its images, their true labels, and the observed ones.

    root      folder that `names` are relative to
    names     (N,) str
    true      (N, L) int8 in {0, 1}; None if the full labels are not known
    observed  (N, L) int8 in {-1, 0, +1}; 0 = unknown
    """

    root: Path
    names: np.ndarray
    true: np.ndarray | None
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: np.ndarray) -> "MultiLabelDataset":
        true = None if self.true is None else self.true[index]
        return replace(self, names=self.names[index], true=true, observed=self.observed[index])

    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names.tolist()]

    @cached_property
    def stamps(self) -> np.ndarray:
        """(N, 2) int64: size in bytes and modification time in ns of each image file; -1 if it is missing."""
        return np.array([_stamp(path) for path in self.paths()], dtype=np.int64).reshape(-1, 2)

    def image_key(self) -> str:
        """Digest of names, sizes and times of the images and the rules of decoding: what caches depend on."""
        return digest(PIXELS, self.names, self.stamps)

    def key(self) -> str:
        """Digest of what a run depends on: names and sizes of the images, and their labels."""
        return digest(self.names, self.stamps[:, 0], self.true, self.observed)


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Splits:
    """val, test: None if the data set has no such images."""

    train: MultiLabelDataset
    val: MultiLabelDataset | None
    test: MultiLabelDataset | None
    classes: Classes

    def named(self) -> dict[str, MultiLabelDataset]:
        every = {"train": self.train, "validation": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}

    def positives_per_image(self) -> float | None:
        """Mean number of true labels of the training images or, if those are unknown, of the validation images."""
        known = [split.true for split in (self.train, self.val) if split is not None and split.true is not None]
        return float(known[0].sum(axis=1).mean()) if known else None

    def scored(self) -> MultiLabelDataset | None:
        """The test set if its full labels are known, which scores need."""
        return self.test if self.test is not None and self.test.true is not None else None

    def key(self) -> str:
        """Digest of images and labels: a run is not resumed on different ones."""
        return digest([split.key() for split in self.named().values()])


def load(
    folder: Path, *, image_root: str | None = None, skip_missing: bool = False, need_images: bool = True, draw: int = 0
) -> Splits:
    """The splits of a formatted data set. If it has no validation split, a fifth of train is set aside.

    image_root    folder of the images, if not the one named in dataset.json
    skip_missing  drop images that are not on the disk, after the split is drawn
    need_images   False: only names and labels are read, and no image need be on the disk
    draw          0: the formatted known labels; K > 0: drawn from the full labels with seed 1200 + K
    Raises UserError for missing files and images.
    """
    classes, root = files.read_classes(folder), files.image_root(folder, image_root)
    found = {name: MultiLabelDataset(root, *arrays) for name, arrays in files.read_all(folder).items()}
    if draw:
        if any(split.true is None for split in found.values()):
            raise UserError(f"--draw {draw} draws the known labels from the full ones, which {folder} does not have")
        found = {name: replace(split, observed=observe(split.true, seed=SEED + draw)) for name, split in found.items()}
    train, val, test = (found.get(name) for name in ("train", files.VALIDATION, "val"))
    if val is None:
        train, val = (train.rows(rows) for rows in split_indices(len(train)))
    splits = {"train": train, "validation": val, "test": test}
    splits = {name: split if split is not None and len(split) else None for name, split in splits.items()}
    if need_images:
        splits = {name: split and _present(split, name, skip_missing) for name, split in splits.items()}
    return Splits(*splits.values(), classes)


def _present(split: MultiLabelDataset, name: str, skip_missing: bool) -> MultiLabelDataset:
    """The split without its missing images. Raises UserError if all are missing, or any without skip_missing."""
    there = split.stamps[:, 0] >= 0
    if there.all():
        return split
    if not skip_missing or not there.any():
        drop = ", or drop them with --skip-missing" if there.any() else ""
        raise UserError(
            f"{split.paths()[int(np.argmin(there))]} not found ({np.count_nonzero(~there):,} of {len(split):,} {name} "
            f"images are missing); name their folder with --image-root DIR{drop}"
        )
    print(f"--skip-missing: {np.count_nonzero(there):,} of {len(split):,} {name} images are on the disk")
    return split.rows(np.flatnonzero(there))
