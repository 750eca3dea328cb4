"""Your own data -> data/<name>/: from a table, annotations, or a folder with one folder per class.

    python preproc/format_own.py --name mine --labels photos/                       # photos/cat/*.jpg, photos/dog/*.jpg
    python preproc/format_own.py --name mine --labels labels.csv --images photos/
    python preproc/format_own.py --name mine --train a.csv --val b.csv --test c.csv --images photos/

docs/own_data.md lists the layouts. A label that a list, a folder or annotations do not name is unknown, unless
--complete states that they name all.
"""

import argparse
import csv
import os
import shlex
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from datasets import DATASETS, files
from datasets.files import observe_command
from datasets.images import describe_bad_images, find_bad_images
from datasets.pixels import accept_truncated
from datasets.protocol import SEED
from preproc.annotations import read_coco, read_folder
from preproc.common import whole_number
from preproc.sources import Source, check_unique, clean_name, locate, merge
from preproc.tables import read_table
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text

SPLITS = {"train": "train", "val": files.VALIDATION, "test": "val"}  # here: in the formatted files
ROBOFLOW = ("_annotations.coco.json", "_classes.csv")  # beside the images of each split
LISTED = 40  # classes whose positives are all listed


def read_source(path: Path, options: argparse.Namespace) -> dict[str, Source]:
    """The source of a table, a JSON file or a folder, as "all" or by split."""
    path = next((path / name for name in ROBOFLOW if (path / name).is_file()), path)
    if path.is_dir():
        return {"all": read_folder(path, options.separator)}
    if path.suffix.lower() == ".json":
        return {"all": read_coco(path)}
    return read_table(path, options.delimiter, options.separator, options.absent)


def read_sources(options: argparse.Namespace) -> dict[str, Source]:
    """The sources by split; train alone if the labels do not name splits."""
    paths, read = {"train": options.labels or options.train, "val": options.val, "test": options.test}, {}
    for split, path in paths.items():
        found = read_source(Path(os.path.abspath(path)), options) if path else {}
        if len(found) > 1 and not options.labels:
            raise UserError(f"{path} has a column of splits; give it as --labels")
        read |= {name if options.labels and name != "all" else split: source for name, source in found.items()}
    if "train" not in read:
        raise UserError(f"{options.labels} has no training images")
    return read


def read_classes(path: Path) -> dict[str, str]:
    """{name: prompt name}, of lines of `name` or `name,prompt name`."""
    rows = [[clean_name(part) for part in row] for row in csv.reader(read_text(path).splitlines())]
    rows = [row for row in rows if any(row)]
    if wrong := [",".join(row) for row in rows or [[]] if len(row) not in (1, 2) or not all(row)]:
        raise UserError(f"{path} must name a class in each line, as `name` or `name,prompt name`, not {wrong[0]!r}")
    check_unique((row[0] for row in rows), f"{path}: the class", "remove one of the lines")
    return {row[0]: row[-1] for row in rows}


def choose_classes(sources: dict[str, Source], listed: dict[str, str] | None) -> dict[str, str]:
    """{name: prompt name}: the listed classes, or all that the sources name."""
    names = list(dict.fromkeys(name for source in sources.values() for name in source.labels.columns))
    if listed is None:
        folded = Counter(map(str.casefold, names))
        if twice := [repr(name) for name in names if folded[name.casefold()] > 1]:
            print(f"note: classes differ in case only: {', '.join(twice)}")
        return {name: name for name in names}
    rest = [source.labels.drop(columns=list(listed), errors="ignore") for source in sources.values()]
    counts = pd.concat([(labels == 1).sum() for labels in rest]).groupby(level=0, sort=False).sum()
    if len(counts):
        shown = ", ".join(f"{name!r} ({count:,} positives)" for name, count in counts[:LISTED].items())
        print(f"--classes leaves out {len(counts):,} classes of the labels: {shown}")
    return listed


def divide(labels: pd.DataFrame, fractions: dict[str, float], seed: int) -> dict[str, pd.DataFrame]:
    """The images that are set aside at random, {split: fraction}, and the rest as train, all in their order."""
    total = len(labels)
    order, start, parts = np.random.RandomState(seed).permutation(total), 0, {}
    for split, fraction in fractions.items():
        end = start + round(fraction * total) if 0 <= fraction < 1 else total
        if end >= total or (end == start and fraction):
            raise UserError(
                f"--{split}-fraction {fraction:g} of {total} images must set some aside and leave some to train on; "
                f"at least {1 / max(1, total):.2g} is one image, and 0 none"
            )
        parts[split], start = labels.iloc[np.sort(order[start:end])], end
    return {"train": labels.iloc[np.sort(order[start:])], **parts}


def skip_bad(read: dict[str, pd.DataFrame], root: Path, options: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """The labels without bad images, and without the classes that lose all their positive training images.

    Raises UserError unless bad images may be left out and others remain.
    """
    bad = {}
    for split, labels in read.items():
        bad |= find_bad_images(labels.index, root, split)
    if not bad:
        return read
    print(describe_bad_images(bad, "\n"))
    total = sum(map(len, read.values()))
    kept = {split: labels[~labels.index.isin(list(bad))] for split, labels in read.items()}
    if not options.skip_bad or any(len(read[split]) and not len(kept[split]) for split in read):
        name, problem = next(iter(bad.items()))
        skip = "" if options.skip_bad else ", or leave them out with --skip-bad"
        raise UserError(
            f"{len(bad):,} of {total:,} images are bad, the first {name} {problem}; name their folder with "
            f"--images DIR{skip}"
        )
    print(f"left out {len(bad):,} of {total:,} images")
    before, after = ((labels["train"] == 1).any() for labels in (read, kept))
    if (lost := before.index[before & ~after].tolist()) and after.any() and not options.keep_empty:
        print(f"left out {len(lost):,} classes whose training images are all bad: {', '.join(map(repr, lost))}")
        kept = {split: labels.drop(columns=lost) for split, labels in kept.items()}
    return kept


def report(split: str, labels: pd.DataFrame) -> None:
    """Print what was found in a split."""
    positives, known = (labels == 1).sum(), np.count_nonzero(labels)
    nothing = len(labels) - int(labels.any(axis=1).sum())
    unknown = "none is unknown" if known == labels.size else f"{1 - known / labels.size:.1%} are unknown"
    print(
        f"{split}: {len(labels):,} images, {labels.shape[1]:,} classes, {positives.sum():,} positives "
        f"({positives.sum() / max(1, len(labels)):.2f} per image), {known - positives.sum():,} negatives; of all "
        f"labels {unknown}" + (f"; {nothing:,} images with nothing known" if nothing else "")
    )
    if len(positives) > LISTED:
        positives = positives.sort_values(ascending=False, kind="stable")
    shown = [f"{name} {count:,}" for name, count in positives.items()]
    shown = shown if len(shown) <= LISTED else [*shown[: LISTED // 4], "...", *shown[-LISTED // 4 :]]
    print(f"  positives: {', '.join(shown)}")


def advise(options: argparse.Namespace, known: dict[str, tuple]) -> None:
    """Print what the data lack, and the next commands."""
    if files.VALIDATION not in known:
        print("no validation images were named: training sets a fifth of the training images aside")
    effects = {
        "train": "methods that read full labels (bce, iun) are",
        "val": "choosing the epoch by full labels is",
        "test": "a test score is",
    }
    for split, effect in effects.items():
        images, full, _ = known.get(SPLITS[split], ((), None, None))
        if full is None and len(images):
            print(f"{split}: some labels are unknown, so {effect} not available")
    folder = Path(options.data_root) / options.name
    if known["train"][1] is not None:
        print(f"every training label is known; to keep one positive per image: {observe_command(folder)}")
    root = [] if options.data_root == "data" else ["--data-root", options.data_root]
    images = ["--mode", "linear", "--features", "FILE.npz"] if options.no_images else ["--prompt", "a photo of a {}"]
    print(f"written to {folder}; next: {shlex.join(['python', 'main.py', '-d', options.name, *root, *images])}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add, unescape = parser.add_argument, lambda text: text.replace("\\t", "\t")  # a tab, as typed in a shell
    add("--name", required=True, help="of the data set: the folder below the data root")
    add("--labels", help="table, JSON file, or folder of class folders or annotations, with all the data")
    for split, kind in (("train", "training"), ("val", "validation"), ("test", "test")):
        add(f"--{split}", metavar="LABELS", help=f"the same for the {kind} images, instead of --labels")
    for split in ("val", "test"):
        add(f"--{split}-fraction", type=float, metavar="F", help=f"fraction set aside as {split}, at random")
    add("--seed", type=whole_number, default=SEED, help="of that draw (default: %(default)s)")
    add("--images", help="folder of the images (default: the labels' own)")
    add("--no-images", action="store_true", help="there are no image files, as with main.py --features")
    add("--classes", help="file of `name` or `name,prompt name`, a line each: the classes to use, in order")
    complete = "splits in which a label that is not named is absent, not unknown"
    add("--complete", nargs="+", default=[], choices=("all", *SPLITS), help=complete)
    add("--delimiter", type=unescape, help="character between the fields of a table (default: found from its header)")
    add("--separator", type=unescape, help="between the labels in one field (default: |)")
    add("--absent", type=int, choices=(0, -1), default=0, help="the mark of an absent label in a table")
    add("--outside", action="store_true", help="allow absolute paths, and .. in paths")
    add("--skip-bad", action="store_true", help="leave out images that are missing or unreadable")
    add("--truncated", action="store_true", help="accept images that are cut short")
    add("--no-check", action="store_true", help="do not read the images")
    add("--keep-empty", action="store_true", help="keep classes without a positive training image")
    add("--overwrite", action="store_true", help="replace a data set of that name")
    add("--data-root", default="data", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    folder = Path(options.data_root) / options.name
    if Path(options.name).name != options.name or options.name[:1] in (".", "") or options.name in DATASETS:
        parser.error(f"--name takes a plain name, not the name of a published data set, not {options.name!r}")
    if bool(options.labels) == bool(options.train) or (options.labels and (options.val or options.test)):
        parser.error("give --labels with all the data, or --train, and with it --val and --test if there are any")
    if options.images and not Path(options.images).is_dir():
        parser.error(f"--images {options.images} is no folder")
    if files.description_path(folder).exists() and not options.overwrite:
        parser.error(f"{folder} holds a data set; --overwrite replaces it, or choose a different --name")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    accept_truncated(options.truncated)
    folder = Path(options.data_root) / options.name

    # The labels
    sources = read_sources(options)
    fractions = {"val": options.val_fraction, "test": options.test_fraction or None}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    if clash := next((split for split in fractions if split in sources), None):
        raise UserError(f"the labels name {clash} images; leave out --{clash}-fraction")
    classes = choose_classes(sources, read_classes(Path(options.classes)) if options.classes else None)

    # The images
    root = Path(os.path.abspath(options.images or os.path.commonpath([source.base for source in sources.values()])))
    read = {}
    for split, (labels, base) in sources.items():
        places = [root, base] if options.images else [base, root]
        places = list(dict.fromkeys(place for place in places if place.is_relative_to(root)))
        labels = merge(labels) if options.no_images else locate(labels, places, root)
        read[split] = labels.reindex(columns=list(classes), fill_value=0)
        outside = (name for name in labels.index if os.path.isabs(name) or ".." in name.split("/"))
        if not options.outside and (name := next(outside, None)) is not None:
            raise UserError(f"{name!r} lies outside the folder of images; --outside allows it")
    check_unique(chain(*(labels.index for labels in read.values())), "the image", "list it once, in one split")
    read = divide(read.pop("train"), fractions, options.seed) | read
    if not options.no_check and not options.no_images:
        read = skip_bad(read, root, options)
    train = read["train"]
    empty = train.columns[~(train == 1).any()]
    if len(empty) and not options.keep_empty:
        drawn = "a different --seed may draw others, " if fractions else ""
        raise UserError(
            f"{len(empty)} of {train.shape[1]} classes have no positive training image, the first {empty[0]!r}; "
            f"{drawn}--classes FILE chooses classes, --keep-empty keeps all"
        )

    # The formatted files
    known = {}
    for split, labels in read.items():
        if {"all", split} & set(options.complete):
            labels = labels.where(labels != 0, -1)
        report(split, labels)
        observed = np.ascontiguousarray(labels)
        full = (observed == 1).view(np.int8) if observed.size and observed.all() else None
        known[SPLITS[split]] = (labels.index, full, observed)
    files.write_own(folder, known, list(train.columns), [classes[name] for name in train.columns], root)
    advise(options, known)


if __name__ == "__main__":
    run_script(main)
