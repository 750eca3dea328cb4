"""Data of one's own -> data/<name>/: a table, a COCO-style JSON file, or a folder with one folder per class.

    python preproc/format_own.py --name mine --labels photos/                       # photos/cat/*.jpg, photos/dog/*.jpg
    python preproc/format_own.py --name mine --labels labels.csv --images photos/
    python preproc/format_own.py --name mine --train a.csv --val b.csv --test c.csv --images photos/

A table (.csv, or .tsv) has a header and an image in its first column. Either its other column is `label`, a name or
several as a|b, and an image may have several rows; or it has a column per class: 1 present, 0 absent, empty or -1
unknown. What a list, a folder or a JSON file does not name is unknown, unless --complete says that they name all.
"""

import csv
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import DATASETS, files
from datasets.images import ahead
from datasets.protocol import SEED
from util.errors import OneLineParser, UserError, describe_error, run_script
from util.files import file_digest, open_regular, read_bytes, read_text

SPLITS = {"train": "train", "val": files.VALIDATION, "test": "val"}  # here: in the formatted files
FOUND = {"1": 1, "0": -1, "": 0, "-1": 0}  # what a column of a class holds: observed label
LISTED = 40  # classes whose positives are all listed
LIMIT = 8 * 2**30  # bytes of a table or of JSON


@dataclass(frozen=True)
class Source:
    """What one file or folder says.

    images      N paths, as written there
    classes     L names
    labels      (N, L) int8 in {-1, 0, +1}; 0 = unknown
    duplicates  rows that said again what an earlier row had said
    """

    images: list[str]
    classes: list[str]
    labels: np.ndarray
    duplicates: int = 0

    def rows(self, index: np.ndarray) -> "Source":
        return Source([self.images[row] for row in index], self.classes, self.labels[index])


class Columns:
    """Numbers of class names: those of a given list, or else of the names as they come, sorted in the end."""

    def __init__(self, path: Path, known: Sequence[str] | None) -> None:
        self.path, self.open = path, known is None
        self.number = {name: column for column, name in enumerate(known or ())}

    def __getitem__(self, name: str) -> int:
        if name not in self.number and not self.open:
            raise UserError(f"{self.path} names the unknown label {name!r}; mend it, or add it to the list of classes")
        return self.number.setdefault(name, len(self.number))

    def labels(self, images: list[str], rows: Sequence[int], columns: Sequence[int]) -> Source:
        """The source in which exactly these entries are positive."""
        names = sorted(self.number) if self.open else list(self.number)
        place = np.array([names.index(name) for name in self.number], dtype=np.int64)
        labels = np.zeros((len(images), len(names)), dtype=np.int8)
        rows, columns = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
        labels[rows, place[columns] if len(columns) else columns] = 1
        return Source(images, names, labels, len(rows) - int(np.count_nonzero(labels)))


def read_source(path: Path, known: Sequence[str] | None, delimiter: str | None, root: Path) -> Source:
    """A table, a JSON file or a folder of folders; known: the classes, None: as they are found."""
    if path.is_dir():
        return read_folders(path, known, root)
    if path.suffix.lower() == ".json":
        return read_json_file(path, known)
    return read_table(path, known, delimiter or ("\t" if path.suffix.lower() == ".tsv" else ","))


@contextmanager
def text_lines(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """(number, line) of the lines that are not blank, without their ends. Raises UserError where it is not text."""
    with open_regular(path, limit=LIMIT) as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline=None) as file:
        try:
            stripped = ((number, line.rstrip("\n")) for number, line in enumerate(file, 1))
            yield ((number, line) for number, line in stripped if line and not line.isspace())
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8 ({describe_error(error)}); save it as such") from None


def fields(path: Path, number: int, line: str, delimiter: str) -> list[str]:
    """The fields of one line; a field with the delimiter in it stands in double quotes."""
    try:
        return next(csv.reader([line], delimiter=delimiter)) if '"' in line else line.split(delimiter)
    except csv.Error as error:
        raise UserError(f"{path}, line {number}: {describe_error(error)}") from None


def read_table(path: Path, known: Sequence[str] | None, delimiter: str) -> Source:
    with text_lines(path) as lines:
        number, line = next(lines, (0, ""))
        header = [name.strip() for name in fields(path, number, line, delimiter)]
        if not number:
            raise UserError(f"{path} is empty; it must have a header and a row for each image")
        if len(header) < 2:
            other = next((mark for mark in ",;\t|" if mark != delimiter and mark in line), None)
            hint = f"; give --delimiter {other!r}" if other else ""
            raise UserError(f"{path}: its header has the one column {header[0]!r}, and none for labels{hint}")
        if len(header) == 2 and header[1].lower() in ("label", "labels"):
            return read_list(path, lines, delimiter, known)
        return read_columns(path, lines, delimiter, header[1:], known)


def read_list(path: Path, lines: Iterator[tuple[int, str]], delimiter: str, known: Sequence[str] | None) -> Source:
    """Rows of image and label, or several labels as a|b."""
    row_of, columns, rows, labels = {}, Columns(path, known), array("i"), array("i")
    for number, line in lines:
        found = fields(path, number, line, delimiter)
        if len(found) != 2:
            raise UserError(f"{path}, line {number}: {len(found)} fields, expected 2: {line[:80]!r}")
        row = row_of.setdefault(named(path, number, found[0]), len(row_of))
        for name in found[1].split("|"):
            if name := name.strip():
                rows.append(row)
                labels.append(columns[name])
    if not row_of:
        raise UserError(f"{path} has a header and no rows; it must have a row for each image")
    return columns.labels(list(row_of), rows, labels)


def read_columns(
    path: Path, lines: Iterator[tuple[int, str]], delimiter: str, names: list[str], known: Sequence[str] | None
) -> Source:
    """Rows of image and a mark for each class."""
    if twice := files.duplicate(names):
        raise UserError(f"{path}: its header names the class {twice!r} twice")
    columns = Columns(path, known)
    order = np.array([columns[name] for name in names])
    classes = names if known is None else list(known)
    row_of: dict[str, tuple[int, int]] = {}  # row, and the line that began it
    marks, duplicates = [], 0
    for number, line in lines:
        image, _, rest = line.partition(delimiter)
        if '"' in line:
            image, *found = fields(path, number, line, delimiter)
            rest = delimiter.join(found)
        values = np.zeros(len(classes), dtype=np.int8)
        values[order] = read_marks(path, number, rest, delimiter, names)
        row, first = row_of.setdefault(named(path, number, image), (len(marks), number))
        if row == len(marks):
            marks.append(values)
            continue
        if clash := np.flatnonzero(values * marks[row] < 0).tolist():
            raise UserError(f"{path}: lines {first} and {number} disagree on {classes[clash[0]]!r} of {image!r}")
        marks[row] = np.where(values, values, marks[row])
        duplicates += 1
    if not marks:
        raise UserError(f"{path} has a header and no rows; it must have a row for each image")
    return Source(list(row_of), classes, np.stack(marks), duplicates)


CODES = np.full(256, 2, dtype=np.int8)
CODES[[ord("1"), ord("0"), ord("?")]] = 1, -1, 0


def read_marks(path: Path, number: int, text: str, delimiter: str, names: list[str]) -> np.ndarray:
    """(L,) int8 in {-1, 0, +1} of the marks of a line.

    Each mark is made one character, so that numpy reads the line at once: a million lines of a thousand marks in
    seconds. What does not fit is read mark by mark.
    """
    end, empty = delimiter, delimiter * 2
    plain = f"{end}{text}{end}".replace(" ", "").replace(f".0{end}", end).replace(f"{end}-1{end}", f"{end}?{end}")
    for _ in range(2):  # one pass misses every other of a row of them
        plain = plain.replace(f"{end}-1{end}", f"{end}?{end}").replace(empty, f"{end}?{end}")
    if len(plain) == 2 * len(names) + 1 and plain.isascii():
        found = CODES[np.frombuffer(plain.encode(), dtype=np.uint8)[1::2]]
        if (found < 2).all():
            return found
    marks = [mark.strip().removesuffix(".0") for mark in text.split(delimiter)]
    if len(marks) != len(names):
        raise UserError(f"{path}, line {number}: {len(marks) + 1} fields, expected {len(names) + 1}: {text[:60]!r}")
    if wrong := next((mark for mark in marks if mark not in FOUND), None):
        raise UserError(
            f"{path}, line {number}: {wrong!r} is none of 1, 0, -1 and empty; a column of names has the header "
            "`image,label`"
        )
    return np.array([FOUND[mark] for mark in marks], dtype=np.int8)


def named(path: Path, number: int, image: str, what: str = "line") -> str:
    """The name of an image, in one spelling. Raises UserError for what is no name of a file."""
    if not files.is_file_name(image := image.strip()):
        raise UserError(f"{path}, {what} {number}: {image!r} is no name of an image")
    plain = ".." in image or not ("//" in image or "./" in image)  # after a link, .. leads elsewhere than it says
    return image if plain else os.path.normpath(image)


def read_folders(folder: Path, known: Sequence[str] | None, root: Path) -> Source:
    """folder/<class>/**: that folder's name is the known label; the same picture in two of them has both.

    root  what the images' names are relative to
    """
    Image.init()
    kinds, columns, found = Image.registered_extensions().keys(), Columns(folder, known), []
    for inside in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        below = [Path(top) / name for top, _, names in os.walk(inside) for name in names if name[0] != "."]
        pictures = sorted(path for path in below if path.suffix.lower() in kinds)
        if not pictures:
            raise UserError(f"{inside} holds no pictures; remove it, or put some of that class into it")
        found += [(path, columns[inside.name]) for path in pictures]
    if not found:
        raise UserError(f"{folder} holds no folders of pictures; it must have one for each class")
    sizes = [path.stat().st_size for path, _ in found]
    shared = {size for size, times in Counter(sizes).items() if times > 1}
    row_of, images, rows = {}, [], []
    for (path, _), size in zip(found, sizes, strict=True):
        content = file_digest(path) if size in shared else size  # files of a size of their own differ from all others
        rows.append(row_of.setdefault(content, len(images)))
        if rows[-1] == len(images):
            images.append(path.relative_to(root).as_posix())
    return columns.labels(images, rows, [column for _, column in found])


class Picture(msgspec.Struct):
    id: int | str
    file_name: str


class Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int | str


class Category(msgspec.Struct):
    id: int | str
    name: str


class Instances(msgspec.Struct):
    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]


def read_json_file(path: Path, known: Sequence[str] | None) -> Source:
    """COCO's layout: `images` with id and file_name, `categories`, and `annotations` that join them."""
    try:
        content = msgspec.json.decode(read_bytes(path, limit=LIMIT), type=Instances)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is not a COCO-style file ({describe_error(error)})") from None
    names = [category.name for category in content.categories]
    for what, listed in (("name", names), ("id", [category.id for category in content.categories])):
        if (twice := files.duplicate(listed)) is not None:
            raise UserError(f"{path} has two categories of the {what} {twice!r}")
    columns = Columns(path, names if known is None else known)
    column = {category.id: columns[category.name] for category in content.categories}
    row_of: dict[str, int] = {}
    row = {
        image.id: row_of.setdefault(named(path, image.id, image.file_name, "image"), len(row_of))
        for image in content.images
    }
    for what, ids, listed in (
        ("image", (annotation.image_id for annotation in content.annotations), row),
        ("category", (annotation.category_id for annotation in content.annotations), column),
    ):
        if (other := next((id for id in ids if id not in listed), None)) is not None:
            raise UserError(f"{path}: an annotation is of {what} {other}, which it does not list")
    if not row_of:
        raise UserError(f"{path} lists no images")
    rows = [row[annotation.image_id] for annotation in content.annotations]
    found = columns.labels(list(row_of), rows, [column[annotation.category_id] for annotation in content.annotations])
    return Source(found.images, found.classes, found.labels)  # several objects of a class are no duplicates


def read_classes(path: Path) -> tuple[list[str], list[str]]:
    """Names and prompt names: lines of `name` or `name,prompt name`."""
    rows = [[part.strip() for part in row] for row in csv.reader(read_text(path).splitlines()) if row]
    if wrong := next((row for row in rows if len(row) > 2 or not all(row)), None):
        raise UserError(f"{path}: a line must be `name` or `name,prompt name`, not {','.join(wrong)!r}")
    names = [row[0] for row in rows]
    if not names or (twice := files.duplicate(names)):
        raise UserError(f"{path} " + (f"names the class {twice!r} twice" if names else "names no classes"))
    return names, [row[-1] for row in rows]


def divide(source: Source, fractions: dict[str, float], seed: int) -> dict[str, Source]:
    """The images that are set aside at random, {split: fraction}, and the rest as train, all in their order."""
    order, start, parts = np.random.RandomState(seed).permutation(len(source.images)), 0, {}
    for split, fraction in fractions.items():
        end = start + round(fraction * len(source.images))
        parts[split], start = source.rows(np.sort(order[start:end])), end
    if start >= len(order):
        raise UserError(f"--val-fraction and --test-fraction leave none of {len(order)} images to train on")
    return {"train": source.rows(np.sort(order[start:])) if fractions else source, **parts}


def check_places(source: Source, outside: bool) -> None:
    """Raises UserError for a path that leaves the folder of images."""
    for name in source.images:
        if not outside and (name[0] == "/" or ".." in name) and (os.path.isabs(name) or ".." in Path(name).parts):
            raise UserError(f"{name!r} lies outside the folder of images; --outside allows it")


def problem(path: str) -> str | None:
    """What is wrong with an image, as far as its header tells; None where nothing is."""
    if not os.path.exists(path):
        return "missing"
    try:
        with open_regular(path) as file, Image.open(file):
            return None
    except Exception:  # each of Pillow's formats raises its own
        return "unreadable"


def check_images(split: str, source: Source, root: Path, skip_bad: bool) -> Source:
    """The source without the images that cannot be opened; raises UserError unless these may be skipped."""
    paths = [os.path.join(root, name) for name in source.images]
    with tqdm(total=len(paths), desc=f"images of {split}", unit="image", leave=False, disable=None) as bar:
        found = []
        for what in ahead(problem, paths, os.cpu_count() or 1, 256):
            found.append(what)
            bar.update()
    bad = [row for row, what in enumerate(found) if what]
    counts = ", ".join(f"{found.count(what):,} {what}" for what in ("missing", "unreadable") if what in found)
    if bad and not skip_bad:
        raise UserError(
            f"{paths[bad[0]]} is {found[bad[0]]} (of {len(paths):,} {split} images {counts}); name their folder with "
            "--images DIR, or leave them out with --skip-bad"
        )
    if len(bad) == len(paths):
        raise UserError(f"of {len(paths):,} {split} images {counts}: none is left; name their folder with --images DIR")
    if bad:
        print(f"{split}: left out {counts} images, the first {paths[bad[0]]}")
    return source.rows(np.flatnonzero([what is None for what in found])) if bad else source


def check_classes(train: Source, keep_empty: bool) -> None:
    empty = np.flatnonzero(~(train.labels == 1).any(axis=0))
    if len(empty) and not keep_empty:
        raise UserError(
            f"{len(empty)} of {len(train.classes)} classes have no positive training image, the first "
            f"{train.classes[empty[0]]!r}; leave them out of the list of classes, or keep them with --keep-empty"
        )


def report(split: str, source: Source, complete: bool) -> None:
    """What was found in a split."""
    labels, (num_images, num_labels) = source.labels, source.labels.shape
    positives, negatives = np.count_nonzero(labels == 1, axis=0), int(np.count_nonzero(labels == -1))
    nothing = num_images - int((labels != 0).any(axis=1).sum())
    unknown = "none is unknown" if complete else f"{1 - np.count_nonzero(labels) / max(1, labels.size):.1%} are unknown"
    print(
        f"{split}: {num_images:,} images, {num_labels:,} classes, {positives.sum():,} positives "
        f"({positives.sum() / max(1, num_images):.2f} per image), {negatives:,} negatives; of all labels {unknown}"
        + (f"; {nothing:,} images with nothing known" if nothing else "")
        + (f"; {source.duplicates:,} entries were there twice" if source.duplicates else "")
    )
    if not num_images:
        return
    order = np.argsort(-positives, kind="stable") if num_labels > LISTED else np.arange(num_labels)
    shown = [f"{source.classes[column]} {positives[column]:,}" for column in order]
    shown = shown if num_labels <= LISTED else [*shown[: LISTED // 4], "...", *shown[-LISTED // 4 :]]
    print(f"  positives: {', '.join(shown)}")


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--name", required=True, help="of the data set: the folder below the data root")
    parser.add_argument("--labels", help="table, COCO-style JSON or folder of class folders, with all the data")
    for split, of in (("train", "training"), ("val", "validation"), ("test", "test")):
        parser.add_argument(f"--{split}", metavar="LABELS", help=f"the same of the {of} images, instead of --labels")
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}-fraction", type=float, metavar="F", help=f"share set aside as {split}, at random"
        )
    parser.add_argument("--seed", type=int, default=SEED, help="of that draw (default: %(default)s)")
    parser.add_argument("--images", help="folder of the images (default: where the labels lie)")
    parser.add_argument(
        "--classes", help="file of `name` or `name,prompt name`, a line each: the classes, in this order"
    )
    parser.add_argument(
        "--complete",
        nargs="+",
        default=[],
        choices=("all", *SPLITS),
        help="splits in which a label that is not named is absent, not unknown",
    )
    parser.add_argument("--delimiter", help="of a table (default: a comma, in .tsv a tab)")
    parser.add_argument("--outside", action="store_true", help="allow absolute paths, and .. in paths")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that are missing or unreadable")
    parser.add_argument("--no-check", action="store_true", help="do not open the images")
    parser.add_argument("--keep-empty", action="store_true", help="keep classes without a positive training image")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of that name")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    folder = Path(options.data_root) / options.name
    sources = {split: getattr(options, split) for split in SPLITS}
    fractions = {split: getattr(options, f"{split}_fraction") for split in ("val", "test")}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    check_options(options, folder, sources, fractions)

    # What the labels say
    given = {split: Path(os.path.abspath(path)) for split, path in sources.items() if path}
    given = given or {"train": Path(os.path.abspath(options.labels))}
    root = Path(os.path.abspath(options.images or os.path.commonpath([folder_of(path) for path in given.values()])))
    if outside := next((path for path in given.values() if path.is_dir() and not path.is_relative_to(root)), None):
        raise UserError(f"{outside} does not lie in --images {root}")
    names, prompt_names = read_classes(Path(options.classes)) if options.classes else (None, None)
    read: dict[str, Source] = {}
    for split, path in given.items():
        read[split] = read_source(path, names, options.delimiter, root)
        names = names or read[split].classes  # of the training images
    if (wrong := next((name for name in names if not files.is_class_name(name)), None)) is not None:
        raise UserError(f"{given['train']}: {wrong!r} is no name of a class")
    check_classes(read["train"], options.keep_empty)
    if twice := files.duplicate(name for source in read.values() for name in source.images):
        raise UserError(f"{twice!r} is in two of the splits; an image belongs to one")
    duplicates = {split: source.duplicates for split, source in read.items()}
    read = divide(read["train"], fractions, options.seed) | {s: read[s] for s in read if s != "train"}
    for split, source in read.items():
        check_places(source, options.outside)
        if not options.no_check and source.images:
            read[split] = check_images(split, source, root, options.skip_bad)

    # The formatted files
    known = {}
    for split, source in read.items():
        labels = source.labels
        if {"all", split} & set(options.complete):
            labels[labels == 0] = -1
        complete = bool(len(source.images)) and bool((labels != 0).all())
        report(split, Source(source.images, source.classes, labels, duplicates.get(split, 0)), complete)
        known[SPLITS[split]] = (source.images, (labels == 1).view(np.int8) if complete else None, labels)
    files.write_own(folder, known, names, prompt_names or names, root)
    advise(options, read, known)


def check_options(options, folder: Path, sources: dict[str, str | None], fractions: dict[str, float]) -> None:
    """Raises UserError for options that do not go together."""
    if len(Path(options.name).parts) != 1 or options.name in (".", "..") or options.name[0] == ".":
        raise UserError(f"--name takes a plain name, not {options.name!r}")
    if options.name in DATASETS:
        raise UserError(f"{options.name} is the name of a published data set; choose another")
    if bool(options.labels) == bool(sources["train"]) or (options.labels and any(sources.values())):
        raise UserError("give --labels with all the data, or --train, and with it --val and --test where there are any")
    for split, fraction in fractions.items():
        if sources[split]:
            raise UserError(f"give --{split} or --{split}-fraction, not both")
        if not 0 <= fraction < 1:
            raise UserError(f"--{split}-fraction must lie in [0, 1), not {fraction}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must lie in [0, 4294967296), not {options.seed}")
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise UserError(f"--delimiter takes one character, not {options.delimiter!r}")
    if options.images and not Path(options.images).is_dir():
        raise UserError(f"--images {options.images} is no folder")
    if files.array_path(folder, "train", "images").exists() and not options.overwrite:
        raise UserError(f"{folder} holds a data set; --overwrite replaces it, or choose another --name")


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def advise(options, read: dict[str, Source], known: dict) -> None:
    """What comes next."""
    if "val" not in read:
        print("no validation images were named: training sets a fifth of the training images aside")
    for split in ("train", "val", "test"):
        if split in read and known[SPLITS[split]][1] is None and len(read[split].images):
            what = {
                "train": "a method that reads full labels (bce, iun)",
                "val": "the choice of the epoch by full labels",
            }
            print(f"{split}: not every label is known, so {what.get(split, 'a test score')} cannot be had")
    root = "" if options.data_root == "data" else f" --data-root {options.data_root}"
    print(f'written to {Path(options.data_root) / options.name}; next: python main.py -d {options.name}{root} --prompt '
          '"a photo of a {}"')  # fmt: skip


if __name__ == "__main__":
    run_script(main)
