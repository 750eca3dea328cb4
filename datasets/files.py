"""The files of a formatted data set: only this module knows their names.

data/<name>/
    formatted_{train,validation,val}_images.npy      (N,) str, paths below the image root
    formatted_{train,validation,val}_labels.npy      (N, L) int8 in {0, 1}
    formatted_{train,validation,val}_labels_obs.npy  (N, L) int8 in {-1, 0, +1}; 0 = unknown
    classes.json   {"names": L names, "prompt_names": L names for the teacher's captions}
    source.json    {"image_root": where the images lie, relative to the folder or absolute}
    observed.json  {split: digest of the observed labels that were drawn from its full labels}
    formatted.json {name of a file: digest of its content}, for images, labels, classes.json: what one formatting wrote

'val' is the official validation or test part, which serves as the test set (Cole et al. 2021). A published data set has
train and val. A data set of one's own needs train only, and no split of it needs full labels; where it has a validation
split, even one without images, that is taken instead of a fifth of train.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os.path import lexists  # a link that leads nowhere is told as such, and not taken for an absent file
from pathlib import Path

import msgspec
import numpy as np

import util.files
from util.errors import UserError
from util.files import REPOSITORY, file_digest, read_array, read_json, write_array, write_json

SPLITS = ("train", "val")
VALIDATION = "validation"  # a validation split of a data set's own
MANIFEST = "formatted.json"  # files made by hand need none
ROWS = 4096  # checked at a time: a check of the whole matrix would take several times its memory


@dataclass(frozen=True)
class Classes:
    """names: what tables show. prompt_names: what the teacher reads. Both of length L."""

    names: list[str]
    prompt_names: list[str]


def array_path(folder: Path, split: str, part: str) -> Path:
    """part: images, labels or labels_obs."""
    return Path(folder) / f"formatted_{split}_{part}.npy"


def has_split(folder: Path, split: str) -> bool:
    """Whether a data set has a split, or should have it: a published data set has both of SPLITS."""
    path = array_path(folder, split, "images")
    return lexists(path) or path.name in _manifest(folder) or (split in SPLITS and _script(folder) is not None)


def _script(folder: Path) -> str | None:
    """The script that formats a published data set; None for a data set of one's own."""
    script = f"format_{Path(folder).name}.py"
    return script if script != "format_own.py" and (REPOSITORY / "preproc" / script).exists() else None


def format_command(folder: Path) -> str:
    """The command that makes a data set's formatted files, of raw files that lie in the same folder."""
    folder = Path(folder)
    if script := _script(folder):
        where = (
            ""
            if str(folder.parent) == "data"
            else f" --load-path {shlex.quote(str(folder))} --save-path {shlex.quote(str(folder))}"
        )
        return f"make it with `python preproc/{script}{where}`"
    return "make it with `python preproc/format_own.py` (docs/own_data.md)"


def observe_command(folder: Path) -> str:
    """The command that draws a data set's observed labels."""
    folder = Path(folder)
    root = "" if str(folder.parent) == "data" else f" --data-root {shlex.quote(str(folder.parent))}"
    return f"make it with `python preproc/generate_observed_labels.py --dataset {shlex.quote(folder.name)}{root}`"


def digest(folder: Path) -> str:
    """Digest of the content of a data set's formatted files, those that are there."""
    paths = [array_path(folder, split, part) for split in SPLITS for part in ("images", "labels", "labels_obs")]
    paths.append(Path(folder) / "classes.json")
    own = [array_path(folder, VALIDATION, part) for part in ("images", "labels", "labels_obs")]
    paths += [path for path in own if lexists(path)]
    return util.files.digest([file_digest(path) if lexists(path) else None for path in paths])


def _alphabet(path: Path, labels: np.ndarray, allowed: tuple[int, ...], how: str) -> np.ndarray:
    """labels as int8, each one of `allowed`."""
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {labels.dtype} of shape {labels.shape}, expected numbers of shape (N, L); {how}")
    if where := _first(lambda rows: ~np.isin(labels[rows], allowed), len(labels)):
        raise UserError(
            f"{path} holds {labels[where]} at row {where[0]}, label {where[1]}; labels must be one of {allowed}; {how}"
        )
    return labels.astype(np.int8, copy=False)


def _first(wrong: Callable[[slice], np.ndarray], num_rows: int) -> tuple[int, int] | None:
    """Row and label of the first entry that wrong(rows), (M, L) bool, marks; None where it marks none."""
    for start in range(0, num_rows, ROWS):
        found = wrong(slice(start, start + ROWS))
        if found.any():
            row, column = np.argwhere(found)[0]
            return start + int(row), int(column)
    return None


def read_images(folder: Path, split: str) -> np.ndarray:
    """(N,) str. Raises UserError where the file is absent or holds no names."""
    path, how = array_path(folder, split, "images"), format_command(folder)
    images = read_array(path, how)
    if images.ndim != 1 or images.dtype.kind != "U":
        raise UserError(f"{path} holds {images.dtype} of shape {images.shape}, expected strings of shape (N,); {how}")
    for row, name in enumerate(images.tolist()):
        if not is_file_name(name):
            raise UserError(f"{path}: {name!r} at row {row} is no name of a file; {how}")
    if twice := duplicate(images.tolist()):
        raise UserError(f"{path} names {twice!r} twice; {how}")
    return images


def is_file_name(name: str) -> bool:
    """Whether a file can have this name: surrogates that stand for bytes are in it, others and NUL are not."""
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_class_name(name: str) -> bool:
    return bool(name.strip()) and "\0" not in name


def read_labels(folder: Path, split: str) -> np.ndarray | None:
    """(N, L) int8 in {0, 1}; None where a data set of one's own has observed labels only."""
    path, how = array_path(folder, split, "labels"), format_command(folder)
    if not lexists(path) and _script(folder) is None and array_path(folder, split, "labels_obs").exists():
        return None
    return _alphabet(path, read_array(path, how), (0, 1), how)


def read_observed(folder: Path, split: str, true: np.ndarray | None) -> np.ndarray:
    """(N, L) int8 in {-1, 0, +1}; raises UserError where it contradicts `true`, as after formatting anew."""
    path, how = array_path(folder, split, "labels_obs"), observe_command(folder)
    observed = _alphabet(path, read_array(path, how), (-1, 0, 1), how)
    if true is None:
        return observed
    if observed.shape != true.shape:
        raise UserError(f"{path} is {observed.shape}, but the labels are {true.shape}; {how}")

    def contradicts(rows: slice) -> np.ndarray:
        return ((observed[rows] == 1) & (true[rows] != 1)) | ((observed[rows] == -1) & (true[rows] != 0))

    if where := _first(contradicts, len(observed)):
        raise UserError(f"{path} contradicts the labels at row {where[0]}, label {where[1]}; {how}")
    return observed


def read_split(folder: Path, split: str, compare: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """images (N,) str and true labels (N, L) int8 in {0, 1}, or None where they are not known.

    compare: hold them against the manifest. Raises UserError where they are of two formattings, or differ in length.
    """
    images, true = read_images(folder, split), read_labels(folder, split)
    if compare:
        _compare(array_path(folder, split, "images"), images)
        _compare(array_path(folder, split, "labels"), true)
    if true is not None:
        _same_length(folder, split, images, "labels", true)
    if not len(images) and split != VALIDATION:
        raise UserError(f"{array_path(folder, split, 'images')} names no images; {format_command(folder)}")
    return images, true


def read_all(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """Of each split images (N,) str, true labels (N, L) int8 in {0, 1} or None, observed labels (N, L) int8 in
    {-1, 0, +1}."""
    there = [split for split in ("train", VALIDATION, "val") if split == "train" or has_split(folder, split)]
    found = {split: read_split(folder, split) for split in there}
    result = {}
    for split, (images, true) in found.items():
        result[split] = (images, true, read_observed(folder, split, true))
        _same_length(folder, split, images, "labels_obs", result[split][2])
    return result


def _same_length(folder: Path, split: str, images: np.ndarray, part: str, labels: np.ndarray) -> None:
    if len(images) != len(labels):
        raise UserError(
            f"{array_path(folder, split, 'images')} has {len(images)} rows, but "
            f"{array_path(folder, split, part)} has {len(labels)}; {format_command(folder)}"
        )


def write_formatted(
    folder: str | Path,
    splits: dict[str, tuple[Sequence[str], np.ndarray]],
    names: Sequence[str],
    prompt_names: Sequence[str],
    image_root: Path,
) -> None:
    """Write {split: (images, (N, L) labels in {0, 1})}, the class names and the image root."""
    folder, names, prompt_names = Path(folder), list(names), list(prompt_names)
    arrays = {s: (np.asarray(images, dtype=np.str_), labels.astype(np.int8)) for s, (images, labels) in splits.items()}
    _write_manifest(folder, arrays, names, prompt_names)
    write_description(folder, names, prompt_names, image_root)
    for split, (images, labels) in arrays.items():
        write_array(array_path(folder, split, "images"), images)
        write_array(array_path(folder, split, "labels"), labels)


def _write_manifest(
    folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray | None]], names: list[str], prompt_names: list[str]
) -> None:
    """Written before the files: until the last of them is there, they are not what it says, whatever was there."""
    content = {"classes.json": util.files.digest(names, prompt_names)}
    for split, (images, true) in splits.items():
        content[array_path(folder, split, "images").name] = util.files.digest(images)
        if true is not None:
            content[array_path(folder, split, "labels").name] = util.files.digest(true)
    write_json(folder / MANIFEST, content)


def _manifest(folder: Path) -> dict[str, str]:
    path = Path(folder) / MANIFEST
    return read_json(path, dict[str, str], format_command(folder)) if lexists(path) else {}


def _compare(path: Path, *content: object) -> None:
    """Raises UserError where a file, None if it is absent, is not what the formatting wrote that made the rest."""
    expected = _manifest(path.parent).get(path.name)
    if expected is not None and expected != util.files.digest(*content):
        raise UserError(
            f"{path} is not the file that was formatted together with the others of its folder; "
            f"{format_command(path.parent)}, or remove {path.parent / MANIFEST} if the change is yours"
        )


def write_observed(folder: Path, split: str, observed: np.ndarray) -> None:
    write_array(array_path(folder, split, "labels_obs"), observed.astype(np.int8, copy=False))


def write_own(
    folder: Path,
    splits: dict[str, tuple[list[str], np.ndarray | None, np.ndarray]],
    names: list[str],
    prompt_names: list[str],
    image_root: Path,
) -> None:
    """Write {split: (images, (N, L) full labels in {0, 1} or None, observed labels in {-1, 0, +1})} as the whole of a
    data set of one's own; what an earlier one of that name had besides is removed."""
    for split in ("train", VALIDATION, "val"):
        for part in ("images", "labels", "labels_obs"):
            array_path(folder, split, part).unlink(missing_ok=True)
    (Path(folder) / "observed.json").unlink(missing_ok=True)
    splits = {split: (np.asarray(images, dtype=np.str_), *labels) for split, (images, *labels) in splits.items()}
    _write_manifest(
        Path(folder), {split: (images, true) for split, (images, true, _) in splits.items()}, names, prompt_names
    )
    write_description(folder, names, prompt_names, image_root)
    for split in sorted(splits, key=lambda split: split == "train"):  # what a killed process left is no data set
        images, true, observed = splits[split]
        if true is not None:
            write_array(array_path(folder, split, "labels"), true)
        write_observed(folder, split, observed)
        write_array(array_path(folder, split, "images"), images)


def write_drawn(folder: Path, drawn: dict[str, np.ndarray]) -> None:
    """Write {split: observed labels that were drawn from its full labels}, and remember that they were drawn."""
    path = Path(folder) / "observed.json"
    known = _drawn(path)
    for split, observed in drawn.items():
        write_observed(folder, split, observed)
    write_json(path, known | {split: util.files.digest(observed) for split, observed in drawn.items()})


def _drawn(record: Path) -> dict[str, str]:
    return read_json(record, dict[str, str], "remove it, and give --overwrite") if lexists(record) else {}


def check_drawn(folder: Path, split: str, new: np.ndarray) -> None:
    """Raises UserError where a split has observed labels, other than the new ones, that `write_drawn` did not write."""
    path, record = array_path(folder, split, "labels_obs"), Path(folder) / "observed.json"
    if path.exists():
        old = _alphabet(path, read_array(path, "--overwrite replaces it"), (-1, 0, 1), "--overwrite replaces it")
        if not np.array_equal(old, new) and _drawn(record).get(split) != util.files.digest(old):
            raise UserError(f"{path} holds labels that this command did not draw; --overwrite replaces them")


def write_description(folder: Path, names: list[str], prompt_names: list[str], image_root: Path) -> None:
    """classes.json and source.json. An image root inside the folder is stored relative to it, so both can move."""
    folder, image_root = Path(folder).resolve(), Path(image_root).resolve()
    inside = image_root.is_relative_to(folder)
    write_json(folder / "classes.json", {"names": names, "prompt_names": prompt_names})
    write_json(folder / "source.json", {"image_root": str(image_root.relative_to(folder) if inside else image_root)})


class ClassNames(msgspec.Struct):
    """classes.json; a bare list of names is read too."""

    names: list[str]
    prompt_names: list[str] | None = None


class Source(msgspec.Struct):
    """source.json."""

    image_root: str


def read_classes(folder: Path, num_labels: int) -> Classes:
    path, how = Path(folder) / "classes.json", format_command(folder)
    found = read_json(path, ClassNames | list[str], how)
    found = ClassNames(found) if isinstance(found, list) else found
    names, prompt_names = found.names, found.names if found.prompt_names is None else found.prompt_names
    for what, these in (("names", names), ("prompt_names", prompt_names)):
        if len(these) != num_labels or not all(map(is_class_name, these)):
            raise UserError(f"{path}: {what} must be {num_labels} strings, one per label, none of them empty; {how}")
    if twice := duplicate(names):
        raise UserError(f"{path}: names must differ from each other, but {twice!r} is there twice; {how}")
    _compare(path, names, prompt_names)
    return Classes(names, prompt_names)


def image_root(folder: Path, override: str | None) -> Path:
    """Where a data set's images lie."""
    if override:
        return Path(override)
    source = read_json(Path(folder) / "source.json", Source, f"give --image-root DIR, or {format_command(folder)}")
    return Path(folder) / source.image_root


def duplicate(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
