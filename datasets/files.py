"""The files of a formatted data set. Only this module knows their names.

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

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from util import files
from util.errors import UserError
from util.files import REPOSITORY, read_array, read_json, write_array, write_json

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
    digests       {file: digest} of the observed labels that were drawn from the full labels
    """

    classes: list[str]
    image_root: str
    prompt_names: list[str] = []
    digests: dict[str, str] = {}


def format_command(folder: str | Path) -> str:
    """The command that formats the data set in this folder, whose raw files lie in the same folder."""
    folder = Path(folder)
    script = f"preproc/format_{folder.name}.py"
    if folder.name == "own" or not (REPOSITORY / script).exists():
        return "python preproc/format_own.py"
    paths = [] if str(folder.parent) == "data" else ["--load-path", str(folder), "--save-path", str(folder)]
    return shlex.join(["python", script, *paths])


def observe_command(folder: str | Path) -> str:
    """The command that draws the observed labels of the data set in this folder."""
    folder = Path(folder)
    root = [] if str(folder.parent) == "data" else ["--data-root", str(folder.parent)]
    return shlex.join(["python", "preproc/generate_observed_labels.py", "--dataset", folder.name, *root])


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
    return Path(override) if override else Path(folder) / read_description(folder).image_root


def splits_of(folder: str | Path) -> list[str]:
    return [split for split in EVERY if split == "train" or array_path(folder, split, "images").exists()]


def read_split(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """images (N,) str and full labels (N, L) int8 in {0, 1}, or None if they are not known."""
    hint, labels = f"make it with `{format_command(folder)}`", array_path(folder, split, "labels")
    images = read_array(array_path(folder, split, "images"), hint)
    return images, read_array(labels, hint).astype(np.int8, copy=False) if labels.exists() else None


def read_all(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """{split: (images and full labels as in read_split, observed labels (N, L) int8 in {-1, 0, +1})}."""
    result, hint = {}, f"make it with `{observe_command(folder)}`"
    for split in splits_of(folder):
        observed = read_array(array_path(folder, split, "labels_obs"), hint).astype(np.int8, copy=False)
        result[split] = (*read_split(folder, split), observed)
    return result


def digest(folder: str | Path) -> str:
    """Digest of images, labels and class names; empty if there is no data set."""
    if not description_path(folder).exists():
        return ""
    paths, classes = [array_path(folder, split, part) for split in EVERY for part in PARTS], read_classes(folder)
    digests = {path.name: _array_digest(path, path.stat().st_mtime_ns) for path in paths if path.exists()}
    return files.digest(digests, classes.names, classes.prompt_names)


@cache
def _array_digest(path: Path, written: int) -> str:
    """Once per process and version of the file: the identity of a run is computed several times."""
    return files.digest(read_array(path))


def write_own(
    folder: str | Path,
    splits: dict[str, tuple[Sequence[str], np.ndarray | None, np.ndarray | None]],
    names: Sequence[str],
    prompt_names: Sequence[str],
    image_root: str | Path,
    drawn: Sequence[str] = (),
) -> None:
    """Write {split: (images, full labels or None, observed labels or None)} as the whole data set.

    In place of None, the folder's own observed labels are kept if its images and full labels are the same.

    drawn       the splits whose observed labels were drawn from the full labels
    image_root  stored relative to the folder if it is inside
    """
    folder, root, whole, digests = Path(folder), Path(image_root).resolve(), {}, {}
    for split, (images, true, observed) in splits.items():
        path = array_path(folder, split, "labels_obs")
        if observed is None and path.exists() and description_path(folder).exists():
            if all(map(np.array_equal, read_split(folder, split), (images, true))):
                observed, before = read_array(path), read_description(folder).digests
                digests |= {path.name: before[path.name]} if path.name in before else {}
        elif split in drawn:
            digests[path.name] = files.digest(np.asarray(observed, dtype=np.int8))
        whole[split] = (images, true, observed)
    description_path(folder).unlink(missing_ok=True)
    for split in EVERY:
        for part, array in zip(PARTS, whole.get(split, (None,) * 3), strict=True):
            if array is None:
                array_path(folder, split, part).unlink(missing_ok=True)
            else:
                kind = np.str_ if part == "images" else np.int8
                write_array(array_path(folder, split, part), np.asarray(array, dtype=kind))
    root = root.relative_to(folder.resolve()) if root.is_relative_to(folder.resolve()) else root
    description = Description(list(names), str(root), list(prompt_names), digests)
    write_json(description_path(folder), msgspec.to_builtins(description))


def write_drawn(folder: str | Path, drawn: dict[str, np.ndarray], overwrite: bool = True) -> None:
    """Write {split: observed labels that were drawn from its full labels}, and record that they were drawn.

    Without overwrite, raises UserError instead of replacing different labels that this function did not write. Those
    that equal the full labels may be replaced.
    """
    description = read_description(folder)
    for split, new in drawn.items():
        path = array_path(folder, split, "labels_obs")
        if path.exists() and not overwrite:
            old = read_array(path)
            ours = files.digest(old) == description.digests.get(path.name)
            if not ours and (old == 0).any() and not np.array_equal(old, new):
                raise UserError(
                    f"{path} holds labels that were not drawn; the same command with --overwrite replaces them"
                )
    for split, new in drawn.items():
        path, new = array_path(folder, split, "labels_obs"), np.asarray(new, dtype=np.int8)
        write_array(path, new)
        description.digests[path.name] = files.digest(new)
    write_json(description_path(folder), msgspec.to_builtins(description))
