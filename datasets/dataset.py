"""One data set class for all: data sets differ in data, not in code."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import files
from datasets.content import ABSENT, PIXELS, ImageFile, content_keys
from datasets.files import Classes
from datasets.protocol import SEED, observe, split_indices
from util.errors import UserError
from util.files import digest


@dataclass(frozen=True)
class MultiLabelDataset:
    """One split: its images, their true labels, and those of them that are observed.

    root      folder that `names` are relative to
    names     (N,) str
    keys      (N,) uint64: a hash of each file's content; ABSENT where it is missing
    true      (N, L) int8 in {0, 1}; None where the full labels are not known
    observed  (N, L) int8 in {-1, 0, +1}; 0 = unknown
    """

    root: Path
    names: np.ndarray
    keys: np.ndarray
    true: np.ndarray | None
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: np.ndarray) -> "MultiLabelDataset":
        true = None if self.true is None else self.true[index]
        return MultiLabelDataset(self.root, self.names[index], self.keys[index], true, self.observed[index])

    def paths(self) -> list[ImageFile]:
        return [
            ImageFile(os.path.join(self.root, name), key)
            for name, key in zip(self.names.tolist(), self.keys.tolist(), strict=True)
        ]

    def image_key(self) -> str:
        """Digest of the image list, of every file's content and of the rules of decoding: what a cache made from images
        depends on."""
        return digest(PIXELS, self.names, self.keys)

    def key(self) -> str:
        """Digest of images and labels: a run must not be resumed on other ones."""
        return digest(self.names, self.keys, self.true, self.observed)


@dataclass(frozen=True)
class Splits:
    """val, test: None where the data set has no such images."""

    train: MultiLabelDataset
    val: MultiLabelDataset | None
    test: MultiLabelDataset | None
    classes: Classes

    def named(self) -> dict[str, MultiLabelDataset]:
        """The splits that there are."""
        every = {"train": self.train, "validation": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}

    def positives_per_image(self) -> float | None:
        """Mean number of true labels of an image that trains or validates, if the full labels of either are known."""
        known = [split.true for split in (self.train, self.val) if split is not None and split.true is not None]
        return float(known[0].sum(axis=1).mean()) if known else None

    def scored(self) -> MultiLabelDataset | None:
        """The test set, if its full labels are known: scores are computed from nothing less."""
        return self.test if self.test is not None and self.test.true is not None else None

    def key(self) -> str:
        """Digest of images and labels: a run is not resumed on different ones."""
        return digest([split.key() for split in self.named().values()])

    def images(self) -> dict[str, np.ndarray]:
        """Which pictures these are: split, name and key of each, (N,)."""
        splits = self.named()
        return {
            "splits": np.repeat(list(splits), [len(split) for split in splits.values()]),
            "names": np.concatenate([split.names for split in splits.values()]),
            "keys": np.concatenate([split.keys for split in splits.values()]),
        }


def load(
    folder: Path,
    *,
    image_root: str | None = None,
    skip_missing: bool = False,
    need_images: bool = True,
    cache: Path | None = None,
    draw: int = 0,
) -> Splits:
    """The splits of a formatted data set. One without validation images of its own sets a fifth of train aside.

    image_root    where the images lie, if not where the formatted files say
    skip_missing  drop images that are not on the disk, after the split is drawn
    need_images   False: only names and labels are read, and no image need be on the disk
    cache         folder that remembers what the image files hold
    draw          0: the formatted known labels; K > 0: drawn from the full labels with seed 1200 + K
    Raises UserError for files that are absent or contradict each other, and for missing images.
    """
    arrays = files.read_all(folder)
    if draw:
        if any(true is None for _, true, _ in arrays.values()):
            raise UserError(f"--draw {draw} draws the known labels from the full ones, which {folder} does not have")
        arrays = {name: (images, true, observe(true, seed=SEED + draw)) for name, (images, true, _) in arrays.items()}
    num_labels = arrays["train"][2].shape[1]
    for name, (_, _, observed) in arrays.items():
        if observed.shape[1] != num_labels:
            part = "labels" if files.array_path(folder, name, "labels").exists() else "labels_obs"
            raise UserError(
                f"{files.array_path(folder, name, part)} has {observed.shape[1]} labels per image, but the training "
                f"set has {num_labels}; {files.format_command(folder)}"
            )
    classes = files.read_classes(folder, num_labels)
    root = files.image_root(folder, image_root)
    found = {}
    for name, (images, true, observed) in arrays.items():
        keys = content_keys(root, images, cache) if need_images else np.full(len(images), ABSENT, np.uint64)
        found[name] = MultiLabelDataset(root, images, keys, true, observed)
    _check_apart(found)
    train, val, test = (found.get(name) for name in ("train", files.VALIDATION, "val"))
    if val is None:
        train, val = (train.rows(rows) for rows in split_indices(len(train)))

    def present(split: MultiLabelDataset | None, name: str) -> MultiLabelDataset | None:
        if split is None or not len(split):
            return None
        return _present(split, name, skip_missing) if need_images else split

    train = _present(train, "train", skip_missing) if need_images else train
    return Splits(train, present(val, "validation"), present(test, "test"), classes)


def _check_apart(found: dict[str, MultiLabelDataset]) -> None:
    """Raises UserError where two splits name the same file; says so where two files hold the same picture."""
    for name, split in found.items():
        _, first, row_of = np.unique(split.keys, return_index=True, return_inverse=True)
        again = np.flatnonzero((first[row_of] != np.arange(len(split))) & (split.keys != ABSENT))
        if len(again):
            names = f"{split.names[first[row_of[again[0]]]]} = {split.names[again[0]]}"
            print(f"warning: {len(again):,} pictures are in the {name} images more than once, the first {names}")
    for one, other in itertools.combinations(found, 2):
        a, b = found[one], found[other]
        if len(both := np.intersect1d(a.names, b.names)):
            raise UserError(
                f"{both[0]} is in both the {one} and the {other} images ({len(both):,} are), and may be in one only"
            )
        both, in_a, in_b = np.intersect1d(a.keys, b.keys, return_indices=True)
        if len(same := np.flatnonzero(both != ABSENT)):
            names = f"{a.names[in_a[same[0]]]} = {b.names[in_b[same[0]]]}"
            print(f"warning: {len(same):,} pictures are in both the {one} and the {other} images, the first {names}")


def _present(split: MultiLabelDataset, name: str, skip_missing: bool) -> MultiLabelDataset:
    """The split without its missing images; raises UserError where images may not be missing."""
    there = split.keys != ABSENT
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
