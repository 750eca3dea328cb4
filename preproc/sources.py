"""The labels that a table, a JSON file or a folder gives to images, with names in one spelling and paths that exist."""

import ast
import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd

from datasets.walk import find_images
from util.errors import UserError

JOINERS = "\u200c\u200d"  # inside words of some scripts and inside emoji
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)


@dataclass(frozen=True)
class Source:
    """images      N paths
    classes     L names
    labels      (N, L) int8 in {-1, 0, +1}; 0 = unknown
    base        folder beside which the images are expected
    ordered     whether the order of the classes is the file's own
    duplicates  entries that repeat an earlier one
    """

    images: list[str]
    classes: list[str]
    labels: np.ndarray
    base: Path
    ordered: bool = False
    duplicates: int = 0

    def rows(self, index: np.ndarray) -> "Source":
        """The source of some rows: their numbers, or (N,) bool."""
        rows = np.arange(len(self.images))[index]
        return replace(self, images=[self.images[row] for row in rows], labels=self.labels[rows], duplicates=0)


def clean_name(name: str) -> str:
    """A class name in one spelling: NFC, single spaces, without control characters and invisible ones."""
    name = unicodedata.normalize("NFC", name.encode(errors="surrogateescape").decode(errors="replace"))
    kept = (c for c in name if c.isspace() or c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(word.strip(JOINERS) for word in "".join(kept).split())


def positives(
    path: Path, base: Path, images: Sequence[str], labels: Sequence[str], separator: str | None, classes=()
) -> Source:
    """The source of entries (image, label): these labels are present, all others unknown.

    labels   names; several in one as a list in JSON, or separated by `separator` (None: by |); "" = none
    classes  names in the file's own order, if it lists them; a label is then one of them
    """
    rows, images = pd.factorize(np.asarray(images, dtype=object))
    codes, texts = pd.factorize(np.asarray(labels, dtype=object))
    parts = [split_text(text, separator or "|") if not classes else [text] if text else [] for text in texts]
    if separator is None:
        _check_separators(path, {name for names in parts for name in names})
    names = list(classes) or sorted({name for names in parts for name in names})
    if not names:
        raise UserError(f"{path} names no labels; each image needs a label, or a mark in the column of a class")
    column, found = {name: number for number, name in enumerate(names)}, np.zeros((len(images), len(names)), np.int8)
    total = 0
    for place in range(max(map(len, parts), default=0)):  # the first label of each entry, the second, ...
        numbers = np.array([column[part[place]] if place < len(part) else -1 for part in parts])[codes]
        found[rows[numbers >= 0], numbers[numbers >= 0]] = 1
        total += np.count_nonzero(numbers >= 0)
    return Source(images.tolist(), names, found, base, bool(classes), total - int(np.count_nonzero(found)))


def split_text(text: str, separator: str) -> list[str]:
    """The class names in a label: a list of JSON or Python, Label Studio's {"choices": [...]}, or names."""
    found = None
    if text.strip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError):
                found = found or read(text.strip())
    found = found.get("choices") if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        found = text.split(separator)
    return [name for part in found if (name := clean_name(part))]


def _check_separators(path: Path, names: set[str]) -> None:
    """Raises UserError if a label seems to be several: its parts are labels, or with , and ; parts of other labels."""
    for mark in ",;/ ":
        parts = {name: {clean_name(part) for part in name.split(mark)} for name in names if mark in name}
        counts = Counter(part for found in parts.values() for part in found) if mark in ",;" else Counter()
        for name, found in sorted(parts.items()):
            if len(found) > 1 and all(part in names or counts[part] > 1 for part in found):
                shown = " and ".join(map(repr, sorted(found)))
                raise UserError(
                    f"{path}: the label {name!r} seems to be made of the labels {shown}; give --separator '{mark}' "
                    f"if it is several labels, or --separator '|' if it is one"
                )


def locate(source: Source, folders: list[Path], root: Path) -> Source:
    """The source with the paths of its images below `root`.

    A name is looked for in `folders` as it is written. If there is no such file, it may fit the only file that has the
    same name but for backslashes, case, %20 and the like, Unicode form, or a missing ending.
    """
    before = [os.path.relpath(folder, root) for folder in folders]
    before = ["" if path == "." else path for path in before]
    found = []
    for name in source.images:
        name = os.path.relpath(name, root) if name.startswith(f"{root}/") else name
        places = (os.path.join(path, name) for path in before)
        found.append(next((place for place in places if os.path.exists(os.path.join(root, place))), None))
    missing = [row for row, place in enumerate(found) if place is None]
    index = defaultdict(set)
    for folder in folders if missing else ():
        for path in find_images(folder)[0]:
            key = _loose(path.relative_to(folder).as_posix())
            for name in (key, os.path.splitext(key)[0]):
                index[name].add(os.path.relpath(path, root))
    nearly = []
    for row in missing:
        fits = index.get(_loose(source.images[row]), ())
        found[row] = next(iter(fits)) if len(fits) == 1 else os.path.join(before[0], source.images[row])
        nearly += [f"{source.images[row]!r} as {found[row]!r}"] if len(fits) == 1 else []
    if nearly:
        print(
            f"{len(nearly):,} names of images differ from the file's in case, ending, backslashes, %20 or Unicode "
            f"form, the first {nearly[0]}"
        )
    return merge(replace(source, images=[plain_path(path) for path in found]))


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold().removeprefix("./")


def plain_path(path: str) -> str:
    """Without . and //; after a link, .. leads elsewhere than its name suggests, and stays."""
    return os.path.normpath(path) if "//" in path or ("./" in path and ".." not in path) else path


def merge(source: Source) -> Source:
    """The source with each image once. Raises UserError if two of its rows contradict each other."""
    rows, images = pd.factorize(np.asarray(source.images, dtype=object))
    if len(images) == len(rows):
        return source
    first = np.unique(rows, return_index=True)[1]
    labels = source.labels[first]
    for row in np.setdiff1d(np.arange(len(rows)), first):
        mine, new = labels[rows[row]], source.labels[row]
        if clash := np.flatnonzero(mine * new < 0).tolist():
            raise UserError(f"two rows of {images[rows[row]]!r} disagree on {source.classes[clash[0]]!r}; correct one")
        labels[rows[row]] = np.where(new, new, mine)
    repeated = source.duplicates + len(rows) - len(images)
    return replace(source, images=images.tolist(), labels=labels, duplicates=repeated)


def align(source: Source, names: list[str]) -> Source:
    """The source with the classes `names`, in this order; a class that it lacks is unknown everywhere."""
    if source.classes == names:
        return source
    column, labels = {name: place for place, name in enumerate(source.classes)}, []
    known = [name for name in names if name in column]
    labels = np.zeros((len(source.images), len(names)), dtype=np.int8)
    labels[:, [names.index(name) for name in known]] = source.labels[:, [column[name] for name in known]]
    return replace(source, classes=names, labels=labels)


def common_case(names: list[str]) -> str:
    """A line on classes whose names differ in case only; empty if there are none."""
    spelled = defaultdict(list)
    for name in names:
        spelled[name.casefold()].append(name)
    twice = [" and ".join(map(repr, found)) for found in spelled.values() if len(found) > 1]
    return f"note: classes differ in case only: {'; '.join(twice)}" if twice else ""
