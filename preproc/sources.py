"""The labels that a table, a JSON file or a folder gives to images, with names in one spelling and paths that exist."""

import ast
import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pandas as pd

from datasets.walk import find_images
from util.errors import UserError

JOINERS = "\u200c\u200d"  # inside words of some scripts and inside emoji
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)


class Source(NamedTuple):
    """labels  (N, L) int8 in {-1, 0, +1}, 0 = unknown; its index has the names of images, its columns the classes
    base    folder beside which the images are expected
    """

    labels: pd.DataFrame
    base: Path


def check_unique(names: Iterable[str], what: str, hint: str) -> None:
    """Raises UserError if a name is listed twice."""
    index = pd.Index(list(names), dtype=object)
    if index.has_duplicates:
        raise UserError(f"{what} {index[index.duplicated()][0]!r} is listed twice; {hint}")


def label_frame(labels: np.ndarray, images: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(labels, pd.Index(images, dtype=object), pd.Index(classes, dtype=object), copy=False)


def clean_name(name: str) -> str:
    """A class name in one spelling: NFC, single spaces, without control characters and invisible ones."""
    name = unicodedata.normalize("NFC", name.encode(errors="surrogateescape").decode(errors="replace"))
    kept = (c for c in name if c.isspace() or c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(word.strip(JOINERS) for word in "".join(kept).split())


def positives(
    path: Path, entries: list[tuple[str, str]] | pd.DataFrame, separator: str | None, classes: Sequence[str] = ()
) -> pd.DataFrame:
    """The labels of entries (image, label): these are present, all others unknown.

    A label is a name; several names as a list in JSON, or separated by `separator` (None: by |); or "", which is none.

    classes  names in the file's own order, if it lists them; a label is then one of them
    """
    entries = pd.DataFrame(entries, columns=["image", "label"], dtype=object)
    entries["image"] = entries["image"].str.strip()
    texts = entries["label"].unique()
    parts = {text: split_text(text, separator or "|") if not classes else [text] if text else [] for text in texts}
    names = list(classes) or sorted(set(chain(*parts.values())))
    if separator is None and not classes:
        _check_separators(path, set(names))
    if not names:
        raise UserError(f"{path} names no labels; each image needs a label, or a mark in the column of a class")
    entries = entries.assign(label=entries["label"].map(parts)).explode("label")  # [] becomes NaN
    rows, images = pd.factorize(entries["image"])
    columns = pd.Index(names, dtype=object).get_indexer(entries["label"])
    found, named = np.zeros((len(images), len(names)), np.int8), columns >= 0
    found[rows[named], columns[named]] = 1
    if repeated := np.count_nonzero(named) - np.count_nonzero(found):
        print(f"{path}: {repeated:,} entries repeat an image and its label")
    return label_frame(found, images, names)


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


def locate(labels: pd.DataFrame, folders: list[Path], root: Path) -> pd.DataFrame:
    """The labels with the paths of their images below `root`.

    A name is looked for in `folders` as it is written. If there is no such file, it may fit the only file that has the
    same name but for backslashes, case, %20 and the like, Unicode form, or a missing ending.
    """
    before, base, paths, missing, nearly = [os.path.relpath(f, root) for f in folders], f"{root}/", [], [], []
    for row, name in enumerate(labels.index):
        name = os.path.relpath(name, base) if name.startswith(base) else name
        places = [_plain_path(os.path.join(path, name)) for path in before]
        found = next((place for place in places if os.path.exists(os.path.join(base, place))), None)
        paths.append(found or places[0])
        missing += [row] if found is None else []
    index = defaultdict(set)
    for folder in folders if missing else ():
        for path in find_images(folder)[0]:
            key = _loose(path.relative_to(folder).as_posix())
            for name in (key, os.path.splitext(key)[0]):
                index[name].add(os.path.relpath(path, root))
    for row in missing:
        if len(fits := index.get(_loose(labels.index[row]), ())) == 1:
            (paths[row],) = fits
            nearly.append(f"{labels.index[row]!r} as {paths[row]!r}")
    if nearly:
        print(
            f"{len(nearly):,} names of images differ from the file's in case, ending, backslashes, %20 or Unicode "
            f"form, the first {nearly[0]}"
        )
    return merge(labels.set_axis(pd.Index(paths, dtype=object)))


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold().removeprefix("./")


def _plain_path(path: str) -> str:
    """Without . and //. After a link, .. leads elsewhere than its name suggests, so it stays."""
    return path.removeprefix("./") if "../" in path else os.path.normpath(path)


def merge(labels: pd.DataFrame) -> pd.DataFrame:
    """The labels with each image once. Raises UserError if two of its rows contradict each other."""
    if labels.index.is_unique:
        return labels
    groups = labels[labels.index.duplicated(keep=False)].groupby(level=0, sort=False)
    high, low = groups.max(), groups.min()
    if len(clash := np.argwhere((high > 0) & (low < 0))):
        image, name = high.index[clash[0, 0]], high.columns[clash[0, 1]]
        raise UserError(f"two rows of {image!r} disagree on {name!r}; correct one")
    once = labels[~labels.index.duplicated()].copy()
    once.loc[high.index] = high.where(high > 0, low)
    print(f"{len(labels) - len(once):,} rows repeat an image")
    return once
