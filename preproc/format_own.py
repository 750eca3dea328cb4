"""Your own data -> data/<name>/: from a table, annotations, or a folder with one folder per class.

    python preproc/format_own.py --name mine --labels photos/                       # photos/cat/*.jpg, photos/dog/*.jpg
    python preproc/format_own.py --name mine --labels labels.csv --images photos/
    python preproc/format_own.py --name mine --train a.csv --val b.csv --test c.csv --images photos/

docs/own_data.md lists what is read. What a list, a folder or annotations do not name is unknown, unless --complete
states that they name all.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import csv

import numpy as np

from datasets import DATASETS, files
from datasets.consistency import duplicate, is_file_name
from datasets.images import accept_truncated
from datasets.protocol import SEED
from preproc.annotations import read_coco, read_folder
from preproc.common import check_images, report_bad
from preproc.sources import Source, align, clean_name, common_case, locate, merge
from preproc.tables import read_table
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text

SPLITS = {"train": "train", "val": files.VALIDATION, "test": "val"}  # here: in the formatted files
LISTED = 40  # classes whose positives are all listed


def read_source(path: Path, options) -> dict[str, Source]:
    """The source of a table, a JSON file or a folder, as "all" or by split."""
    if not path.exists():
        raise UserError(f"{path} not found; name a table, a JSON file or a folder")
    if path.is_dir():
        found = read_folder(path, options.separator)
        return read_source(found, options) if isinstance(found, Path) else {"all": found}
    if path.suffix.lower() == ".json":
        return {"all": read_coco(path, options.separator)}
    return read_table(path, options.delimiter, options.separator, options.absent)


def read_classes(path: Path) -> dict[str, str]:
    """{name: prompt name}, of lines of `name` or `name,prompt name`."""
    rows = [[clean_name(part) for part in row] for row in csv.reader(read_text(path).splitlines())]
    rows = [row for row in rows if any(row)]
    if wrong := next((row for row in rows if len(row) > 2 or not all(row)), None):
        raise UserError(f"{path}: a line must be `name` or `name,prompt name`, not {','.join(wrong)!r}")
    if not rows or (twice := duplicate(row[0] for row in rows)):
        raise UserError(f"{path} " + (f"names the class {twice!r} twice" if rows else "names no classes"))
    return {row[0]: row[-1] for row in rows}


def choose_classes(sources: list[Source], listed: dict[str, str] | None) -> dict[str, str]:
    """{name: prompt name}: the listed classes, or all that the sources name. A line reports what a list leaves out."""
    names = list(dict.fromkeys(name for source in sources for name in source.classes))
    if listed is None:
        names = names if any(source.ordered for source in sources) else sorted(names)
        if line := common_case(names):
            print(line)
        return {name: name for name in names}
    counts = {name: 0 for name in names if name not in listed}
    for source in sources:
        for column, name in enumerate(source.classes):
            if name in counts:
                counts[name] += int(np.count_nonzero(source.labels[:, column] == 1))
    if counts:
        shown = ", ".join(f"{name!r} ({count:,} positives)" for name, count in list(counts.items())[:LISTED])
        print(f"--classes leaves out {len(counts):,} classes of the labels: {shown}")
    return listed


def divide(source: Source, fractions: dict[str, float], seed: int) -> dict[str, Source]:
    """The images that are set aside at random, {split: fraction}, and the rest as train, all in their order."""
    total = len(source.images)
    order, start, parts = np.random.RandomState(seed).permutation(total), 0, {}
    for split, fraction in fractions.items():
        end = start + round(fraction * total)
        if end == start and fraction:
            raise UserError(
                f"--{split}-fraction {fraction:g} of {total} images is none; at least {1 / total:.2g} is one"
            )
        parts[split], start = source.rows(np.sort(order[start:end])), end
    if start >= total:
        raise UserError(f"--val-fraction and --test-fraction leave none of {total} images to train on")
    if fractions.get("test") == 0:
        del parts["test"]
    return {"train": source.rows(np.sort(order[start:])) if fractions else source, **parts}


def check_names(source: Source, outside: bool) -> None:
    """Raises UserError for a path that leaves the folder of images, or that no file can have."""
    for name in source.images:
        if not is_file_name(name):
            raise UserError(f"{name!r} is no name of an image")
        if not outside and (os.path.isabs(name) or (".." in name and ".." in Path(name).parts)):
            raise UserError(f"{name!r} lies outside the folder of images; --outside allows it")


def check_classes(train: Source, options) -> None:
    empty = np.flatnonzero(~(train.labels == 1).any(axis=0))
    if len(empty) and not options.keep_empty:
        drawn = "another --seed may draw others, " if options.val_fraction or options.test_fraction else ""
        raise UserError(
            f"{len(empty)} of {len(train.classes)} classes have no positive training image, the first "
            f"{train.classes[empty[0]]!r}; {drawn}--classes FILE chooses classes, --keep-empty keeps all"
        )


def report(split: str, source: Source, complete: bool) -> None:
    """What was found in a split."""
    labels, (num_images, num_labels) = source.labels, source.labels.shape
    positives, known = np.count_nonzero(labels == 1, axis=0), np.count_nonzero(labels)
    nothing = num_images - int(labels.any(axis=1).sum())
    unknown = "none is unknown" if complete else f"{1 - known / max(1, labels.size):.1%} are unknown"
    print(
        f"{split}: {num_images:,} images, {num_labels:,} classes, {positives.sum():,} positives "
        f"({positives.sum() / max(1, num_images):.2f} per image), {known - positives.sum():,} negatives; of all labels "
        f"{unknown}"
        + (f"; {nothing:,} images with nothing known" if nothing else "")
        + (f"; {source.duplicates:,} entries were there twice" if source.duplicates else "")
    )
    order = np.argsort(-positives, kind="stable") if num_labels > LISTED else np.arange(num_labels)
    shown = [f"{source.classes[column]} {positives[column]:,}" for column in order]
    shown = shown if num_labels <= LISTED else [*shown[: LISTED // 4], "...", *shown[-LISTED // 4 :]]
    print(f"  positives: {', '.join(shown)}")


def parse(argv: list[str] | None):
    parser = OneLineParser(__doc__)
    parser.add_argument("--name", required=True, help="of the data set: the folder below the data root")
    parser.add_argument(
        "--labels", help="table, JSON file, or folder of class folders or annotations, with all the data"
    )
    for split, kind in (("train", "training"), ("val", "validation"), ("test", "test")):
        parser.add_argument(f"--{split}", metavar="LABELS", help=f"the same for the {kind} images, instead of --labels")
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}-fraction", type=float, metavar="F", help=f"fraction set aside as {split}, at random"
        )
    parser.add_argument("--seed", type=int, default=SEED, help="of that draw (default: %(default)s)")
    parser.add_argument("--images", help="folder of the images (default: where the labels lie)")
    parser.add_argument("--no-images", action="store_true", help="there are no image files, as with main.py --features")
    parser.add_argument(
        "--classes", help="file of `name` or `name,prompt name`, a line each: the classes to use, in order"
    )
    parser.add_argument(
        "--complete",
        nargs="+",
        default=[],
        choices=("all", *SPLITS),
        help="splits in which a label that is not named is absent, not unknown",
    )
    parser.add_argument("--delimiter", help="between the fields of a table (default: found from its header)")
    parser.add_argument("--separator", help="between the labels in one field (default: |)")
    parser.add_argument("--absent", type=int, choices=(0, -1), default=0, help="the mark of an absent label in a table")
    parser.add_argument("--outside", action="store_true", help="allow absolute paths, and .. in paths")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that are missing or unreadable")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    parser.add_argument("--no-check", action="store_true", help="do not read the images")
    parser.add_argument("--keep-empty", action="store_true", help="keep classes without a positive training image")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of that name")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    folder, given = Path(options.data_root) / options.name, [options.train, options.val, options.test]
    if len(Path(options.name).parts) != 1 or options.name in (".", "..") or options.name[0] == ".":
        parser.error(f"--name takes a plain name, not {options.name!r}")
    if options.name in DATASETS:
        parser.error(f"{options.name} is the name of a published data set; choose another")
    if bool(options.labels) == bool(options.train) or (options.labels and any(given)):
        parser.error("give --labels with all the data, or --train, and with it --val and --test if there are any")
    for split in ("val", "test"):
        fraction = getattr(options, f"{split}_fraction")
        if fraction is not None and getattr(options, split):
            parser.error(f"give --{split} or --{split}-fraction, not both")
        if fraction is not None and not 0 <= fraction < 1:
            parser.error(f"--{split}-fraction must lie in [0, 1), not {fraction}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must lie in [0, 4294967296), not {options.seed}")
    for name in ("delimiter", "separator"):
        if (mark := getattr(options, name)) is not None:
            setattr(options, name, mark := mark.replace("\\t", "\t"))
            if len(mark) != 1:
                parser.error(f"--{name} takes one character, not {mark!r}")
    if options.images and not Path(options.images).is_dir():
        parser.error(f"--images {options.images} is no folder")
    if files.description_path(folder).exists() and not options.overwrite:
        parser.error(f"{folder} holds a data set; --overwrite replaces it, or choose another --name")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    accept_truncated(options.truncated)
    folder = Path(options.data_root) / options.name

    # What the labels say
    if options.labels:
        read = read_source(Path(os.path.abspath(options.labels)), options)
        read = {"train" if split == "all" else split: source for split, source in read.items()}
    else:
        paths = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
        read = {split: read_source(Path(os.path.abspath(path)), options) for split, path in paths.items()}
        if several := next((paths[split] for split, found in read.items() if len(found) > 1), None):
            raise UserError(f"{several} has a column of splits; give it as --labels")
        read = {split: next(iter(found.values())) for split, found in read.items()}
    if "train" not in read:
        raise UserError(f"{options.labels} has no training images")
    classes = choose_classes(list(read.values()), read_classes(Path(options.classes)) if options.classes else None)

    # Which images they mean
    root = Path(os.path.abspath(options.images or os.path.commonpath([source.base for source in read.values()])))
    for split, source in read.items():
        places = [root, source.base] if options.images else [source.base, root]
        places = list(dict.fromkeys(place for place in places if place.is_relative_to(root)))
        source = merge(source) if options.no_images else locate(source, places, root)
        read[split] = align(source, list(classes))
        check_names(read[split], options.outside)
    if twice := duplicate(name for source in read.values() for name in source.images):
        raise UserError(f"{twice!r} is in two of the splits; an image belongs to one")
    duplicates = {split: source.duplicates for split, source in read.items()}
    fractions = {split: getattr(options, f"{split}_fraction") for split in ("val", "test")}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    if clash := next((split for split in fractions if split in read), None):
        raise UserError(f"the labels name {clash} images; leave out --{clash}-fraction")
    read = divide(read["train"], fractions, options.seed) | {s: read[s] for s in read if s != "train"}
    if not options.no_check and not options.no_images:
        read = skip_bad(read, root, folder, options.skip_bad)
    check_classes(read["train"], options)

    # The formatted files
    known = {}
    for split, source in read.items():
        labels = source.labels
        if {"all", split} & set(options.complete):
            labels[labels == 0] = -1
        complete = bool(len(source.images)) and bool(labels.all())
        report(split, replace(source, duplicates=duplicates.get(split, 0)), complete)
        known[SPLITS[split]] = (source.images, (labels == 1).view(np.int8) if complete else None, labels)
    files.write_own(folder, known, list(classes), list(classes.values()), root)
    advise(options, read, known)


def skip_bad(read: dict[str, Source], root: Path, folder: Path, skip: bool) -> dict[str, Source]:
    """The sources without their bad images. Raises UserError unless these may be left out and others remain."""
    problems = {split: check_images(split, [str(root / name) for name in s.images]) for split, s in read.items()}
    bad = {f"{read[split].images[row]}": line for split, found in problems.items() for row, line in found.items()}
    if not bad:
        return read
    report_bad(bad, folder, sys.stdout)
    total = sum(len(source.images) for source in read.values())
    if not skip:
        name, problem = next(iter(bad.items()))
        raise UserError(
            f"{len(bad):,} of {total:,} images are bad, the first {name} ({problem}); name their folder with "
            "--images DIR, or leave them out with --skip-bad"
        )
    kept = {
        split: source.rows(np.setdiff1d(np.arange(len(source.images)), list(problems[split])))
        for split, source in read.items()
    }
    if empty := next((split for split, source in kept.items() if read[split].images and not source.images), None):
        raise UserError(f"no {empty} image is left; name their folder with --images DIR")
    print(f"left out {len(bad):,} of {total:,} images")
    return kept


def advise(options, read: dict[str, Source], known: dict) -> None:
    """What comes next."""
    if "val" not in read:
        print("no validation images were named: training sets a fifth of the training images aside")
    for split in ("train", "val", "test"):
        if split in read and known[SPLITS[split]][1] is None and read[split].images:
            what = {
                "train": "methods that read full labels (bce, iun) are",
                "val": "choosing the epoch by full labels is",
            }
            print(f"{split}: some labels are unknown, so {what.get(split, 'a test score is')} not available")
    root = [] if options.data_root == "data" else ["--data-root", options.data_root]
    if known["train"][1] is not None:
        draw = ["python", "preproc/generate_observed_labels.py", "--dataset", options.name, *root]
        print(f"every training label is known; to keep one positive per image: {shlex.join(draw)}")
    how = ["--mode", "linear", "--features", "FILE.npz"] if options.no_images else ["--prompt", "a photo of a {}"]
    command = shlex.join(["python", "main.py", "-d", options.name, *root, *how])
    print(f"written to {Path(options.data_root) / options.name}; next: {command}")


if __name__ == "__main__":
    run_script(main)
