"""One data set class for all: data sets differ in data, not in code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import files
from datasets.files import Classes
from datasets.protocol import split_indices
from util.errors import UserError
from util.files import digest


@dataclass(frozen=True)
class MultiLabelDataset:
    """One split: its images, their true labels, and those of them that are observed.

    root      folder that `names` are relative to
    names     (N,) str
    stats     (N, 2) int64: bytes and time of change of each file; -1 where it is missing
    true      (N, L) int8 in {0, 1}
    observed  (N, L) int8 in {-1, 0, +1}; 0 = unknown
    """

    root: Path
    names: np.ndarray
    stats: np.ndarray
    true: np.ndarray
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: np.ndarray) -> "MultiLabelDataset":
        return MultiLabelDataset(
            self.root, self.names[index], self.stats[index], self.true[index], self.observed[index]
        )

    def paths(self) -> list[str]:
        return [str(self.root / name) for name in self.names.tolist()]

    def image_key(self) -> str:
        """Digest of the image list and of every file's size and time: what a cache made from images depends on."""
        return digest(self.names, self.stats)

    def key(self) -> str:
        """Digest of images and labels: a run must not be resumed on other ones."""
        return digest(self.names, self.stats[:, 0], self.true, self.observed)


@dataclass(frozen=True)
class Splits:
    train: MultiLabelDataset
    val: MultiLabelDataset
    test: MultiLabelDataset
    classes: Classes

    def named(self) -> dict[str, MultiLabelDataset]:
        return {"train": self.train, "validation": self.val, "test": self.test}


def load(folder: Path, *, image_root: str | None = None, skip_missing: bool = False) -> Splits:
    """The three splits of a formatted data set.

    image_root    where the images lie, if not where the formatted files say
    skip_missing  drop images that are not on the disk, after the split is drawn
    Raises UserError for files that are absent or contradict each other, and for missing images.
    """
    splits = {name: files.read_split(folder, name) for name in files.SPLITS}
    num_labels, others = (labels.shape[1] for _, labels in splits.values())
    if others != num_labels:
        raise UserError(
            f"{files.array_path(folder, 'val', 'labels')} has {others} labels per image, but the training set has "
            f"{num_labels}; {files.format_command(folder)}"
        )
    classes = files.read_classes(folder, num_labels)
    root = files.image_root(folder, image_root)
    official = {
        name: MultiLabelDataset(
            root, images, files.image_stats(root, images), true, files.read_observed(folder, name, true)
        )
        for name, (images, true) in splits.items()
    }
    train_rows, val_rows = split_indices(len(official["train"]))
    return Splits(
        _present(official["train"].rows(train_rows), "train", skip_missing),
        _present(official["train"].rows(val_rows), "validation", skip_missing),
        _present(official["val"], "test", skip_missing),
        classes,
    )


def _present(split: MultiLabelDataset, name: str, skip_missing: bool) -> MultiLabelDataset:
    """The split without its missing images; raises UserError where images may not be missing."""
    there = split.stats[:, 0] >= 0
    if not there.all() and not skip_missing:
        raise UserError(
            f"{split.paths()[int(np.argmin(there))]} not found ({np.count_nonzero(~there):,} of {len(split):,} {name} "
            f"images are missing); name their folder with --image-root DIR, or drop them with --skip-missing"
        )
    if not there.any():
        raise UserError(
            f"none of the {len(split):,} {name} images is below {split.root}; name their folder with --image-root DIR"
        )
    if not there.all():
        print(f"--skip-missing: {np.count_nonzero(there):,} of {len(split):,} {name} images are on the disk")
        return split.rows(np.flatnonzero(there))
    return split
