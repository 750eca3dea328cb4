"""Tables of labels: an image and its labels in each row, or a column of marks for each class."""

import csv
import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.walk import image_endings
from preproc.sources import SPLIT_NAMES, Source, check_unique, clean_name, label_frame, positives
from util.errors import UserError
from util.files import read_text, reading

IMAGE_COLUMNS = "image filename file_name image_path filepath path file images image_id img".split()
LABEL_COLUMNS = "label labels class classes category categories tags tag choice choices".split()
SPLIT_COLUMNS = "split subset set partition".split()
INDEX_COLUMNS = ("", "id", "index", "unnamed: 0", *SPLIT_COLUMNS)  # a first column that is no image
NO_LABEL = ("nan", "NaN", "None", "<NA>", "null", "NULL")  # what programs write for a missing value
MARKS = {"1": 1, "true": 1, "yes": 1, "0": -1, "-0": -1, "false": -1, "no": -1}
MARKS |= dict.fromkeys(("-1", "", "nan", "none", "<na>", "na", "null"), 0)


def read_table(path: Path, delimiter: str | None, separator: str | None, absent: int) -> dict[str, Source]:
    """The table as one source, "all", or one for each split that its column `split` names.

    absent  the mark that means absent: 0, or -1, and then 0 is unknown
    """
    names, table = open_table(path, delimiter)
    lower = [name.lower() for name in names]
    image, label, split = (
        next((lower.index(name) for name in known if name in lower), None)
        for known in (IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if image is None or not (label is not None or lower[0] in INDEX_COLUMNS or lower[0].endswith("_id")):
        image = 0
    if len(nameless := table[table[image] == ""]):
        raise UserError(f"{path}: a row names no image: {', '.join(nameless.iloc[0])[:80]!r}")
    splits = pd.Series("all", table.index)
    if split is not None and table[split].str.lower().isin(SPLIT_NAMES).all():
        splits = table[split].str.lower().map(SPLIT_NAMES)
        print(f"{path}: the column {names[split]!r} divides the images")
    else:
        split = None
    others = [place for place in table if place not in (image, label, split)]
    others = [place for place in others if names[place] or table[place].any()]
    marks = MARKS | ({"0": 0, "-0": 0, "-1": -1} if absent else {})
    if label is not None and others and all(_are_marks(table[place], marks) for place in (label, *others)):
        label, others = None, sorted([label, *others])  # the name of a class, among others
    groups = {name: np.flatnonzero(splits == name) for name in splits.unique()}
    if label is None:
        whole = _read_marks(path, table[image], {names[place]: table[place] for place in others}, marks)
        return {name: Source(whole.iloc[rows], path.parent) for name, rows in groups.items()}
    if others:
        print(f"{path}: labels are read from {names[label]!r}; not read: {', '.join(repr(names[i]) for i in others)}")
    missing = table[label].isin(NO_LABEL)
    if missing.any():
        print(f"{path}: {missing.sum():,} rows have nan, None or null in place of a label; their labels are unknown")
    entries = pd.DataFrame({"image": table[image], "label": table[label].mask(missing, "")})
    return {name: Source(positives(path, entries.iloc[rows], separator), path.parent) for name, rows in groups.items()}


def open_table(path: Path, delimiter: str | None) -> tuple[list[str], pd.DataFrame]:
    """The names of the columns, and the (rows, columns) fields as str without white space around them."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    if excel := re.match(r'"?sep=(.)"?\n+', text, re.IGNORECASE):  # Excel's own line
        delimiter, text = delimiter or excel[1], text[excel.end() :]
    lines, rows = re.findall(".*\n?", text), []  # a StringIO would take four bytes for each character
    with reading(path, "a table"):
        delimiter = delimiter or _find_delimiter(path, lines)
        reader = csv.reader(lines, delimiter=delimiter)
        names = [clean_name(name) for name in next(reader, [])]
        for row in reader:
            row = list(map(sys.intern, map(str.strip, row)))  # most fields are one of few marks
            if len(row) != len(names) and any(row):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(names)}: "
                    f"{delimiter.join(row)[:80]!r}; put a field that holds {delimiter!r} in quotes"
                )
            rows += [row] if any(row) else []
    if len(names) < 2 or not rows or Path(names[0]).suffix.lower() in image_endings():
        raise UserError(
            f"{path} begins with {text[:60]!r}; it must have the header `image,label`, or `image` and the names of the "
            "classes, and a row for each image; if its fields are separated otherwise, give --delimiter"
        )
    check_unique(filter(None, names), f"{path}: the column", "rename or remove one")
    return names, pd.DataFrame(rows, dtype=object)


def _find_delimiter(path: Path, lines: list[str]) -> str:
    """The delimiter that gives the header at least two fields, and the first rows as many."""
    rows = {mark: list(islice(filter(None, csv.reader(lines, delimiter=mark)), 20)) for mark in ",;\t|"}
    fits = [mark for mark, found in rows.items() if found and len(found[0]) > 1]
    fits = [mark for mark in fits if len(set(map(len, rows[mark]))) == 1] or fits
    if "\t" in fits and path.suffix.lower() == ".tsv":
        return "\t"
    if len(fits) > 1:
        raise UserError(f"{path} may be separated by {' or '.join(map(repr, fits))}; choose with --delimiter")
    return fits[0] if fits else ","


def _plain(text: str) -> str:
    """A field as in MARKS: `1.0` and `.0` are 1 and 0."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.lower()


def _are_marks(column: pd.Series, marks: dict[str, int]) -> bool:
    return all(_plain(value) in marks for value in column.unique())


def _read_marks(path: Path, images: pd.Series, columns: dict[str, pd.Series], marks: dict[str, int]) -> pd.DataFrame:
    """The labels of a column of marks for each class."""
    labels, seen = np.zeros((len(images), len(columns)), dtype=np.int8), set()
    for place, (name, column) in enumerate(columns.items()):
        rows, values = pd.factorize(column)
        plain = [_plain(value) for value in values]
        found = [marks.get(mark) for mark in plain]
        if None in found or not name:
            value = values[found.index(None)] if None in found else next(filter(None, values))
            raise UserError(
                f"{path}: {value!r} in the column {name!r} of {images[column == value].iloc[0]!r}: the column of a "
                "class has a name, and marks 1, 0, -1, True, False or empty; leave the column out if it is no class; "
                "a column of names has the header `label`"
            )
        labels[:, place] = np.array(found)[rows]
        seen |= set(plain)
    if "-1" in seen and "0" not in seen and marks["-1"] == 0:
        print(f"note: {path} has 1 and -1 and no 0; -1 is read as unknown. If it means absent, give --absent -1")
    return label_frame(labels, images, list(columns))
