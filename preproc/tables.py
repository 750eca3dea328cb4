"""Tables of labels: an image and its labels in each row, or a column of marks for each class."""

import codecs
import csv
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.consistency import duplicate
from datasets.walk import image_endings
from preproc.sources import SPLIT_NAMES, Source, clean_name, positives
from util.errors import UserError, describe_error

SAMPLE = 2**20  # characters that decide on the delimiter
IMAGE_COLUMNS = (
    "image",
    "filename",
    "file_name",
    "image_path",
    "filepath",
    "path",
    "file",
    "images",
    "image_id",
    "img",
)
LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "categories", "tags", "tag", "choice", "choices")
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
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
    if image is None or not (
        lower[0] in ("", "id", "index", "unnamed: 0", *LABEL_COLUMNS, *SPLIT_COLUMNS) or lower[0][-3:] == "_id"
    ):
        image = 0
    if len(frame) == 0:
        raise UserError(f"{path} has a header and no rows; it must have a row for each image")
    frame = _drop_empty_rows(path, frame, image)
    images = _text(frame[image]).to_numpy()
    if split is not None and not _text(frame[split]).str.lower().isin(SPLIT_NAMES).all():
        split = None  # a class, or something else
    others = [place for place in range(len(names)) if place not in (image, label, split)]
    others = [place for place in others if names[place] or (_text(frame[place]) != "").any()]
    marks = MARKS | ({"0": 0, "-0": 0, "-1": -1} if absent else {})
    if label is not None and others and all(_wrong_mark(frame[place], marks) is None for place in (label, *others)):
        label, others = None, sorted([label, *others])  # the name of a class, among others
    if label is None:
        classes = [names[place] for place in others]
        whole = _read_marks(path, frame[others].set_axis(classes, axis=1), images, marks)
    elif others:
        print(f"{path}: labels are read from {names[label]!r}; not read: {', '.join(repr(names[i]) for i in others)}")
    if split is not None:
        print(f"{path}: the column {names[split]!r} divides the images")
    splits = pd.Series("all", frame.index) if split is None else _text(frame[split]).str.lower().map(SPLIT_NAMES)
    groups = {name: np.flatnonzero(splits == name) for name in splits.unique()}
    if label is None:
        return {name: whole.rows(rows) if split is not None else whole for name, rows in groups.items()}
    labels = _text(frame[label])
    if missing := int(labels.isin(NO_LABEL).sum()):
        print(f"{path}: {missing:,} rows have nan, None or null in place of a label; their labels are unknown")
    labels = labels.where(~labels.isin(NO_LABEL), "").to_numpy()
    return {name: positives(path, path.parent, images[rows], labels[rows], separator) for name, rows in groups.items()}


def open_table(path: Path, delimiter: str | None) -> tuple[list[str], pd.DataFrame]:
    """The names of the columns and the (rows, columns) fields: categories, but strings if each row has its own."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({describe_error(error)}); save it as CSV in UTF-8") from None
    first, _, rest = text.partition("\n")
    if first.strip('"').lower().startswith("sep=") and len(first.strip('"')) == 5:  # Excel's own line
        delimiter, text = delimiter or first.strip('"')[4], rest.lstrip("\n")
    if not text.strip():
        raise UserError(f"{path} is empty; it must have a header and a row for each image")
    lines = [f"{line}\n" for line in text[:SAMPLE].split("\n")][: None if len(text) <= SAMPLE else -1]
    try:
        delimiter = delimiter or _find_delimiter(path, lines)
        reader = csv.reader(lines, delimiter=delimiter)
        names = [clean_name(name) for name in next(reader)]
        body = text.split("\n", reader.line_num)[-1] if text.count("\n") >= reader.line_num else ""
        _check_header(path, names)
        _check_fields(path, body, delimiter, len(names), reader.line_num + 1)
        kinds = defaultdict(lambda: "category", {0: object})
        kinds |= {place: object for place, name in enumerate(names) if name.lower() in IMAGE_COLUMNS + LABEL_COLUMNS}
        options = dict(header=None, names=range(len(names)), dtype=kinds, na_filter=False, low_memory=False)
        return names, pd.read_csv(BytesIO(body.encode()), sep=delimiter, **options)
    except pd.errors.EmptyDataError:
        return names, pd.DataFrame(columns=range(len(names)))
    except (csv.Error, pd.errors.ParserError) as error:
        raise UserError(f"{path}: {describe_error(error)}") from None


def _find_delimiter(path: Path, lines: list[str]) -> str:
    """The delimiter that gives the header at least two fields, and the first rows as many."""
    rows = {mark: list(islice(filter(None, csv.reader(lines, delimiter=mark)), 20)) for mark in ",;\t|"}
    fits = [mark for mark, found in rows.items() if len(found[0]) > 1]
    even = [mark for mark in fits if len(set(map(len, rows[mark]))) == 1]
    found = even or fits
    if not found:
        raise UserError(f"{path}: its header has the one column {lines[0].strip()!r}, and none for labels")
    if len(found) > 1 and "\t" in found and path.suffix.lower() == ".tsv":
        return "\t"
    if len(found) > 1:
        raise UserError(f"{path} may be separated by {' or '.join(map(repr, found))}; choose with --delimiter")
    return found[0]


def _check_header(path: Path, names: list[str]) -> None:
    if Path(names[0]).suffix.lower() in image_endings():
        raise UserError(
            f"{path} has no header; its first line must be `image,label`, or `image` and the names of the classes"
        )
    if (twice := duplicate(name for name in names if name)) is not None:
        raise UserError(f"{path}: its header names {twice!r} twice; rename or remove one of the columns")
    if len(names) < 2:
        raise UserError(f"{path}: its header has the one column {names[0]!r}, and none for labels; give --delimiter")


def _check_fields(path: Path, body: str, delimiter: str, width: int, start: int) -> None:
    """Raises UserError for a row of more or fewer fields than the header; pandas fills short rows in silence."""
    quoted = '"' in body
    lines = body.split("\n")
    rows = csv.reader(lines, delimiter=delimiter) if quoted else lines
    for number, row in enumerate(rows, start):
        if row and (count := len(row) if quoted else row.count(delimiter) + 1) != width and (quoted or row.strip()):
            place, text = (rows.line_num + start - 1, delimiter.join(row)) if quoted else (number, row)
            raise UserError(
                f"{path}, line {place}: {count} fields, expected {width}: {text[:80]!r}; "
                f"put a field that holds {delimiter!r} in quotes"
            )


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _text(column: pd.Series) -> pd.Series:
    return column.astype(str).astype(object).str.strip()


def _drop_empty_rows(path: Path, frame: pd.DataFrame, image: int) -> pd.DataFrame:
    nameless = (_text(frame[image]) == "").to_numpy()
    if nameless.any():
        filled = frame[nameless].apply(lambda column: _text(column) != "").any(axis=1)
        if filled.any():
            row = ", ".join(_text(frame.loc[filled.idxmax()]))
            raise UserError(f"{path}: a row names no image: {row[:80]!r}")
    return frame[~nameless]


def _mark(text: object, marks: dict[str, int]) -> int | None:
    """1 present, -1 absent, 0 unknown; None for anything else. `1.0` and `.0` are 1 and 0."""
    text = str(text).strip().lower()
    try:
        return marks.get(f"{float(text):g}")
    except ValueError:
        return marks.get(text)


def _wrong_mark(column: pd.Series, marks: dict[str, int]) -> object:
    return next((value for value in column.unique() if _mark(value, marks) is None), None)


def _read_marks(path: Path, frame: pd.DataFrame, images: np.ndarray, marks: dict[str, int]) -> Source:
    """The source of a column of marks for each class."""
    labels, seen = np.zeros(frame.shape, dtype=np.int8), set()
    for place, name in enumerate(frame.columns):
        column = frame[name].astype("category")
        values = [_mark(value, marks) for value in column.cat.categories]
        if None in values:
            wrong = column.cat.categories[values.index(None)]
            image = images[np.flatnonzero(column == wrong)[0]]
            raise UserError(
                f"{path}: {str(wrong)!r} in the column {name!r} of {image!r} is none of 1, 0, -1, True, False and "
                "empty; leave the column out if it is no class; a column of names has the header `label`"
            )
        if not name:
            raise UserError(f"{path}: the column after {frame.columns[place - 1]!r} has values and no name")
        labels[:, place] = np.array(values, dtype=np.int8)[column.cat.codes]
        seen |= {str(value).strip().removesuffix(".0") for value in column.cat.categories}
    if "-1" in seen and "0" not in seen and marks["-1"] == 0:
        print(f"note: {path} has 1 and -1 and no 0; -1 is read as unknown. If it means absent, give --absent -1")
    return Source(images.tolist(), list(frame.columns), labels, path.parent, True)
