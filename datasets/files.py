"""The files of a formatted data set, read and written: only this module knows their names.

data/<name>/
    formatted_{train,validation,val}_images.npy      (N,) str, paths below the image root
    formatted_{train,validation,val}_labels.npy      (N, L) int8 in {0, 1}; absent if the full labels are not known
    formatted_{train,validation,val}_labels_obs.npy  (N, L) int8 in {-1, 0, +1}; 0 = unknown
    dataset.json                                     `Description`: written last, so that an interrupted formatting
                                                     leaves no data set

'val' is the official validation or test part, which serves as the test set (Cole et al. 2021). A published data set has
train and val. Other data sets need train only. If there is a validation split, even one without images, it replaces the
fifth of train that validates otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from datasets.commands import format_command, observe_command
from datasets.consistency import check
from util import files
from util.errors import UserError
from util.files import read_array, read_json, write_array, write_json

SPLITS = ("train", "val")  # of a published data set
VALIDATION = "validation"
EVERY = ("train", VALIDATION, "val")
PARTS = ("images", "labels", "labels_obs")


@dataclass(frozen=True)
class Classes:
    """names: what tables show. prompt_names: what the teacher reads. Both of length L."""

    names: list[str]
    prompt_names: list[str]


class Description(msgspec.Struct):
    """dataset.json.

    image_root    absolute, or relative to the folder
    prompt_names  empty: the names
    digests       {file: digest of its array}, made when the array was written; a run's identity has them
    drawn         the splits whose observed labels were drawn from the full labels
    """

    classes: list[str]
    image_root: str
    prompt_names: list[str] = []
    digests: dict[str, str] = {}
    drawn: list[str] = []


def array_path(folder: str | Path, split: str, part: str) -> Path:
    """part: one of PARTS."""
    return Path(folder) / f"formatted_{split}_{part}.npy"


def description_path(folder: str | Path) -> Path:
    return Path(folder) / "dataset.json"


def read_description(folder: str | Path) -> Description:
    return read_json(description_path(folder), Description, f"make it with `{format_command(folder)}`")


def read_classes(folder: str | Path) -> Classes:
    found = read_description(folder)
    return Classes(found.classes, found.prompt_names or found.classes)


def image_root(folder: str | Path, override: str | None = None) -> Path:
    """Where a data set's images lie."""
    return Path(override) if override else Path(folder) / read_description(folder).image_root


def splits_of(folder: str | Path) -> list[str]:
    """The splits that a data set has."""
    return [split for split in EVERY if split == "train" or array_path(folder, split, "images").exists()]


def read_split(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """images (N,) str and full labels (N, L) int8 in {0, 1}, or None if they are not known."""
    hint, labels = f"make it with `{format_command(folder)}`", array_path(folder, split, "labels")
    images = read_array(array_path(folder, split, "images"), hint)
    return images, read_array(labels, hint).astype(np.int8, copy=False) if labels.exists() else None


def read_all(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """{split: (images as in read_split, full labels, observed labels (N, L) int8 in {-1, 0, +1})}."""
    result, hint = {}, f"make it with `{observe_command(folder)}`"
    for split in splits_of(folder):
        observed = read_array(array_path(folder, split, "labels_obs"), hint).astype(np.int8, copy=False)
        result[split] = (*read_split(folder, split), observed)
    return result


def digest(folder: str | Path) -> str:
    """Digest of images, labels and class names; of an absent data set, too. An array that was written after
    dataset.json is read."""
    description = description_path(folder)
    if not description.exists():
        return ""
    found, written, digests = read_description(folder), description.stat().st_mtime_ns, {}
    for path in (array_path(folder, split, part) for split in EVERY for part in PARTS):
        if path.exists():
            known = found.digests.get(path.name) if path.stat().st_mtime_ns <= written else None
            digests[path.name] = known or files.digest(read_array(path))
    return files.digest(digests, found.classes, found.prompt_names or found.classes)


def write_formatted(
    folder: str | Path,
    splits: dict[str, tuple[Sequence[str], np.ndarray]],
    names: Sequence[str],
    prompt_names: Sequence[str],
    image_root: str | Path,
) -> None:
    """Write {split: (images, full labels)}; observed labels are kept only if images and full labels are the same."""
    old = read_description(folder).digests if description_path(folder).exists() else {}
    observed: dict[str, np.ndarray | None] = {}
    for split, arrays in splits.items():
        paths = [array_path(folder, split, part) for part in PARTS]
        same = all(
            old.get(path.name) == files.digest(_array(part, array))
            for path, part, array in zip(paths, PARTS, arrays, strict=False)
        )
        observed[split] = read_array(paths[2]) if same and paths[2].exists() else None
    drawn = read_description(folder).drawn if old else []
    whole = {split: (*arrays, observed[split]) for split, arrays in splits.items()}
    write_own(folder, whole, names, prompt_names, image_root, drawn)


def write_own(
    folder: str | Path,
    splits: dict[str, tuple[Sequence[str], np.ndarray | None, np.ndarray | None]],
    names: Sequence[str],
    prompt_names: Sequence[str],
    image_root: str | Path,
    drawn: Sequence[str] = (),
) -> None:
    """Write {split: (images, full labels or None, observed labels or None)} as the whole data set.

    Raises UserError if they do not fit together. An image root inside the folder is stored relative to it.
    """
    check(splits, names, prompt_names)
    folder, image_root, digests = Path(folder), Path(image_root).resolve(), {}
    description_path(folder).unlink(missing_ok=True)
    for split in EVERY:
        for part, array in zip(PARTS, splits.get(split, (None,) * 3), strict=True):
            path = array_path(folder, split, part)
            if array is None:
                path.unlink(missing_ok=True)
            else:
                write_array(path, array := _array(part, array))
                digests[path.name] = files.digest(array)
    inside = image_root.is_relative_to(folder.resolve())
    root = str(image_root.relative_to(folder.resolve()) if inside else image_root)
    write_json(
        description_path(folder),
        msgspec.to_builtins(Description(list(names), root, list(prompt_names), digests, list(drawn))),
    )


def _array(part: str, array: Sequence[str] | np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.str_ if part == "images" else np.int8)


def write_drawn(folder: str | Path, drawn: dict[str, np.ndarray]) -> None:
    """Write {split: observed labels that were drawn from its full labels}, and record that they were drawn."""
    description = read_description(folder)
    for split, observed in drawn.items():
        path = array_path(folder, split, "labels_obs")
        write_array(path, _array("labels_obs", observed))
        description.digests[path.name] = files.digest(_array("labels_obs", observed))
    description.drawn = sorted({*description.drawn, *drawn})
    write_json(description_path(folder), msgspec.to_builtins(description))


def check_drawn(folder: str | Path, split: str, new: np.ndarray) -> None:
    """Raises UserError if a split has observed labels that `write_drawn` did not write and that differ from `new`."""
    path, found = array_path(folder, split, "labels_obs"), read_description(folder)
    old = read_array(path) if path.exists() else new
    known = files.digest(_array("labels_obs", old)) == found.digests.get(path.name) and split in found.drawn
    if not known and not np.array_equal(old, new):
        raise UserError(f"{path} holds labels that this command did not draw; --overwrite replaces them")
