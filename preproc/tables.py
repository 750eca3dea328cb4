"""Tables of labels: an image and its labels in each row, or a column of marks for each class."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.walk import image_endings
from preproc.sources import SPLIT_NAMES, Source, clean_name, duplicate, label_frame, positives
from util.errors import UserError
from util.files import read_text, reading

SAMPLE = 2**24  # characters of a table that decide on its delimiter
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
    names, frame = open_table(path, delimiter)
    lower = [name.lower() for name in names]
    image, label, split = (_first(lower, known) for known in (IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS))
    if image is None or not (label is not None or lower[0] in INDEX_COLUMNS or lower[0].endswith("_id")):
        image = 0
    nameless = _text(frame[image]) == ""
    for row in frame[nameless].itertuples(index=False):
        if any(str(field).strip() for field in row):
            raise UserError(f"{path}: a row names no image: {', '.join(map(str, row))[:80]!r}")
    frame = frame[~nameless]
    images = _text(frame[image]).to_numpy()
    if split is not None and not _text(frame[split]).str.lower().isin(SPLIT_NAMES).all():
        split = None  # a class, or something else
    others = [place for place in range(len(names)) if place not in (image, label, split)]
    others = [place for place in others if names[place] or (_text(frame[place]) != "").any()]
    marks = MARKS | ({"0": 0, "-0": 0, "-1": -1} if absent else {})
    if label is not None and others and all(_are_marks(frame[place], marks) for place in (label, *others)):
        label, others = None, sorted([label, *others])  # the name of a class, among others
    if label is not None and others:
        print(f"{path}: labels are read from {names[label]!r}; not read: {', '.join(repr(names[i]) for i in others)}")
    if split is not None:
        print(f"{path}: the column {names[split]!r} divides the images")
    splits = pd.Series("all", frame.index) if split is None else _text(frame[split]).str.lower().map(SPLIT_NAMES)
    groups = {name: np.flatnonzero(splits == name) for name in splits.unique()}
    if label is None:
        whole = _read_marks(path, frame[others].set_axis([names[place] for place in others], axis=1), images, marks)
        return {name: whole.rows(rows) for name, rows in groups.items()}
    labels = _text(frame[label])
    if missing := int(labels.isin(NO_LABEL).sum()):
        print(f"{path}: {missing:,} rows have nan, None or null in place of a label; their labels are unknown")
    labels = labels.where(~labels.isin(NO_LABEL), "").to_numpy()
    return {name: positives(path, path.parent, images[rows], labels[rows], separator) for name, rows in groups.items()}


def open_table(path: Path, delimiter: str | None) -> tuple[list[str], pd.DataFrame]:
    """The names of the columns and the (rows, columns) fields: categories, but strings if each row has its own."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    first, _, rest = text.partition("\n")
    if (mark := first.strip('"').lower()).startswith("sep=") and len(mark) == 5:  # Excel's own line
        delimiter, text = delimiter or mark[4], rest.lstrip("\n")
    if "\n" not in text.strip():
        raise UserError(f"{path} has no rows; it must have a header, and a row for each image")
    with reading(path, "a table"):
        delimiter, file = delimiter or _find_delimiter(path, text), StringIO(text)
        reader = csv.reader(file, delimiter=delimiter)
        names = [clean_name(name) for name in next(reader)]
        _check_header(path, names)
        body = file.tell()
        for row in reader:  # pandas fills short rows in silence
            if len(row) != len(names) and any(map(str.strip, row)):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(names)}: "
                    f"{delimiter.join(row)[:80]!r}; put a field that holds {delimiter!r} in quotes"
                )
        file.seek(body)
        kinds = defaultdict(lambda: "category", {0: object})
        kinds |= {place: object for place, name in enumerate(names) if name.lower() in IMAGE_COLUMNS + LABEL_COLUMNS}
        options = dict(header=None, names=range(len(names)), dtype=kinds, na_filter=False, low_memory=False)
        return names, pd.read_csv(file, sep=delimiter, **options)


def _find_delimiter(path: Path, text: str) -> str:
    """The delimiter that gives the header at least two fields, and the first rows as many."""
    rows = {
        mark: list(islice(filter(None, csv.reader(StringIO(text[:SAMPLE]), delimiter=mark)), 20)) for mark in ",;\t|"
    }
    fits = [mark for mark, found in rows.items() if len(found[0]) > 1]
    fits = [mark for mark in fits if len(set(map(len, rows[mark]))) == 1] or fits
    if "\t" in fits and path.suffix.lower() == ".tsv":
        return "\t"
    if len(fits) > 1:
        raise UserError(f"{path} may be separated by {' or '.join(map(repr, fits))}; choose with --delimiter")
    return fits[0] if fits else ","


def _check_header(path: Path, names: list[str]) -> None:
    if Path(names[0]).suffix.lower() in image_endings():
        raise UserError(
            f"{path} has no header; its first line must be `image,label`, or `image` and the names of the classes"
        )
    if (twice := duplicate(name for name in names if name)) is not None:
        raise UserError(f"{path}: its header names {twice!r} twice; rename or remove one of the columns")
    if len(names) < 2:
        raise UserError(f"{path}: its header has the one column {names[0]!r}, and none for labels; give --delimiter")


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _text(column: pd.Series) -> pd.Series:
    return column.astype(str).astype(object).str.strip()


def _mark(text: object, marks: dict[str, int]) -> int | None:
    """1 present, -1 absent, 0 unknown; None for anything else. `1.0` and `.0` are 1 and 0."""
    text = str(text).strip().lower()
    try:
        return marks.get(f"{float(text):g}")
    except ValueError:
        return marks.get(text)


def _are_marks(column: pd.Series, marks: dict[str, int]) -> bool:
    return all(_mark(value, marks) is not None for value in column.unique())


def _read_marks(path: Path, frame: pd.DataFrame, images: np.ndarray, marks: dict[str, int]) -> Source:
    """The source of a column of marks for each class."""
    labels, seen = np.zeros(frame.shape, dtype=np.int8), set()
    for place, (name, column) in enumerate(frame.items()):
        column = column.astype("category")
        values = {value: _mark(value, marks) for value in column.cat.categories}
        if wrong := [value for value, mark in values.items() if mark is None]:
            raise UserError(
                f"{path}: {str(wrong[0])!r} in the column {name!r} of {images[column == wrong[0]][0]!r} is "
                "none of 1, 0, -1, True, False and empty; leave the column out if it is no class; a column of names "
                "has the header `label`"
            )
        if not name:
            raise UserError(f"{path}: the column after {frame.columns[place - 1]!r} has values and no name")
        labels[:, place] = np.array(list(values.values()), dtype=np.int8)[column.cat.codes]
        seen |= {str(value).strip().removesuffix(".0") for value in values}
    if "-1" in seen and "0" not in seen and marks["-1"] == 0:
        print(f"note: {path} has 1 and -1 and no 0; -1 is read as unknown. If it means absent, give --absent -1")
    return Source(label_frame(labels, images, frame.columns), path.parent)
