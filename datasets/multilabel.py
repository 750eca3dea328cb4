"""One data set class for all: data sets differ in data, not in code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli import UserError
from config import Config
from datasets import files
from datasets.files import Classes
from storage import digest, writable_folder

SPLIT_SEED = 1200  # of the 80/20 split; fixed by Cole et al. 2021
VAL_FRACTION = 0.2


@dataclass(frozen=True)
class MultiLabelDataset:
    """One split: which images, what is known of them, and what is true.

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


def split_indices(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the official training set that train and that validate, both sorted (Cole et al. 2021)."""
    order = np.random.RandomState(SPLIT_SEED).permutation(num_images)
    num_val = round(VAL_FRACTION * num_images)
    return np.sort(order[: num_images - num_val]), np.sort(order[num_images - num_val :])


def cache_folder(config: Config) -> Path:
    """Where caches of a data set lie. Raises UserError where it cannot be written."""
    folder = Path(config.cache_root or config.data_root) / config.dataset / "cache"
    return writable_folder(folder, "--cache-root")


def load(config: Config) -> Splits:
    """The three splits of a formatted data set.

    Raises UserError for files that are absent or do not fit together, and for missing images unless
    config.skip_missing, which drops them after the split is drawn.
    """
    folder = Path(config.data_root) / config.dataset
    splits = {name: files.read_split(folder, name) for name in files.SPLITS}
    num_labels, others = (labels.shape[1] for _, labels in splits.values())
    if others != num_labels:
        raise UserError(
            f"{files.array_path(folder, 'val', 'labels')} has {others} labels an image, but the training set has "
            f"{num_labels}; {files.format_command(folder)}"
        )
    classes = files.read_classes(folder, num_labels)
    root = files.image_root(folder, config.image_root)
    whole = {
        name: MultiLabelDataset(
            root, images, files.image_stats(root, images), true, files.read_observed(folder, name, true)
        )
        for name, (images, true) in splits.items()
    }
    train_rows, val_rows = split_indices(len(whole["train"]))
    train, val, test = whole["train"].rows(train_rows), whole["train"].rows(val_rows), whole["val"]
    train, val, test = (
        _present(split, name, config) for split, name in ((train, "train"), (val, "val"), (test, "test"))
    )
    if config.val_labels == "observed":
        val = MultiLabelDataset(val.root, val.names, val.stats, (val.observed == 1).astype(np.int8), val.observed)
    return Splits(train, val, test, classes)


def _present(split: MultiLabelDataset, name: str, config: Config) -> MultiLabelDataset:
    """The split without its missing images, or UserError where they may not be missing."""
    there = split.stats[:, 0] >= 0
    if not there.all() and not config.skip_missing:
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
