"""How good a teacher's pseudo-labels would be, at every threshold and several temperatures, without training.

    python assess_teacher.py -d pascal [--similarity FILE.npz] [--calibrate matrix] [--temperatures 0.005 0.01 0.02]

Takes main.py's options for data, teacher, method and rule besides its own. Where the full labels of the training images
are not known, or with --observed-only, it says what the observed ones tell: the share of them that is found, and the
precision that follows from it.
"""

from util.errors import OneLineParser, UserError, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

import config as settings
import datasets
import label_quality
import pseudo_labels
import supervision
from label_quality import Counts
from util import devices
from util.files import atomic, writable_folder, write_text

TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1)
SHOWN = 12  # classes in the printed table


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__, epilog="All options of main.py for data, teacher, method and rule are taken too.")
    about = "of the softmax, beside --temp (default: %(default)s)"
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, metavar="T", help=about)
    about = "as if only the observed labels were known"
    parser.add_argument("--observed-only", action="store_true", help=about)
    about = "true labels of an image, for the estimate of precision, where the full labels are not known (default: 1)"
    parser.add_argument("--positives-per-image", type=float, metavar="K", help=about)
    about = "begin of the names of the CSV file and the figure (default: RESULTS_DIR/pseudo_labels_DATASET)"
    parser.add_argument("--out", metavar="PATH", help=about)
    options, rest = parser.parse_known_args(argv)
    config = settings.parse(rest)
    rule = config.method.pseudo_labels
    if rule is None:
        raise UserError(f"the method {config.loss} takes no pseudo-labels; choose one that does with --loss")
    if not all(0 < temperature < float("inf") for temperature in options.temperatures):
        raise UserError("--temperatures must lie in (0, inf)")

    # Data and similarities
    device = devices.pick_device(config.gpu)
    config = replace(config, precision=devices.pick_precision(config.precision, device))
    devices.set_threads(config.threads)
    datasets.prepare(config.folder)
    cache = writable_folder(config.cache_folder, "--cache-root")
    splits = datasets.load(
        config.folder,
        cache=cache,
        image_root=config.image_root,
        skip_missing=config.skip_missing,
        need_images=config.asked_teacher().scores_new_images,
    )
    train, classes = splits.train, splits.classes
    workers = config.workers or devices.default_workers()
    views = supervision.views_of(config, classes, train, cache=cache, device=device, workers=workers)
    true = None if options.observed_only else train.true
    known = options.positives_per_image or (None if options.observed_only else splits.positives_per_image())
    expected = known or 1.0

    # Counts, for every way of scoring
    threshold = rule.threshold(config.hparams)
    ways = [("none", temperature) for temperature in options.temperatures] if "temperature" in config.hparams else []
    asked = (supervision.calibration_of(config), config.hparams.get("temperature"))
    counts = {}
    for calibration, temperature in sorted({*ways, ("none", asked[1]), asked}, key=lambda way: (way[0] != "none", way)):
        values = config.hparams | {"temperature": temperature}
        how = dict(calibration=calibration, pool=config.teacher_pool)
        _, scores, notes = pseudo_labels.make(rule, values, views, train.observed, **how)
        print(*notes, sep="\n", end="\n" if notes else "")
        counts[calibration, temperature] = label_quality.count(
            scores, train.observed, true, [threshold] if threshold else []
        )

    # What they say
    print(f"{config.dataset_name}: {len(train):,} training images, {len(classes.names)} labels")
    if true is None:
        bound = "" if known else ", which makes it a lower bound (see --positives-per-image)"
        print(
            "only observed labels are known: recall is estimated by the share of them that is found, and precision by"
        )
        print(f"that share and {expected:g} true labels per image{bound}")
    print(f"\n{overview(counts, threshold, expected)}\n")
    about = label_quality.as_json(counts[asked], classes.names, threshold, expected)
    if true is not None and threshold is not None:
        print(f"{per_class(about)}\n")
    out = Path(options.out or Path(config.results_dir) / f"pseudo_labels_{config.dataset_name}")
    csv_file, figure = out.with_name(f"{out.name}.csv"), out.with_name(f"{out.name}.png")
    write_text(csv_file, to_csv(counts, asked, classes.names, expected))
    with atomic(figure) as temporary:
        label_quality.draw(temporary, about, f"{config.dataset_name}, {described(*asked)}")
    print(f"written: {csv_file}, {figure}")


def described(calibration: str, temperature: float | None) -> str:
    parts = [] if temperature is None else [f"temperature {temperature:g}"]
    return ", ".join([*parts, "not calibrated" if calibration == "none" else f"calibrated by {calibration}"])


def line(cells: list[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def overview(counts: dict[tuple, Counts], threshold: float | None, expected: float) -> str:
    """For every way of scoring: the figures at the threshold that is set, and at the one with the best F1."""
    lines = []
    for way, these in counts.items():
        curves = {entries: label_quality.curve(these, entries) for entries in label_quality.ENTRIES}
        estimate = label_quality.estimate(these, expected)
        if "f1" in curves["all"]:
            names = [(entries, name) for entries in curves for name in ("precision", "recall", "f1")]
            columns = [curves[entries][name] for entries, name in names]
            titles = [("F1" if name == "f1" else name) + ("" if entries == "all" else "*") for entries, name in names]
            best = {entries: int(np.nanargmax(np.nan_to_num(curves[entries]["f1"]))) for entries in curves}
            places = {"best F1": best["all"], "best F1*": best["unobserved"]}
        else:
            columns = list(estimate.values())
            titles = ["observed found", "precision (estimate)"]
            f1 = 2 * columns[0] * columns[1] / np.maximum(columns[0] + columns[1], 1e-12)
            places = {"best F1 (estimate)": int(np.nanargmax(np.nan_to_num(f1)))}
        if threshold is not None:
            places = {"set": int(np.flatnonzero(these.thresholds == threshold)[0])} | places
        for title, at in places.items():
            figures = [curves["all"]["positives_per_image"][at], *(column[at] for column in columns)]
            lines.append(line([described(*way), title, f"{these.thresholds[at]:g}", *map(number, figures)]))
    header = ["scores", "", "threshold", "positives per image", *titles]
    note = "\n\n\\* over the unobserved entries only" if len(titles) > 2 else ""
    return "\n".join([line(header), "|" + "---|" * len(header), *lines]) + note


def per_class(about: dict) -> str:
    """The classes with the lowest F1 at the threshold that is set."""
    rows = sorted(about["classes"], key=lambda row: row["f1"] or 0.0)
    header = ["class", "observed positives", "positives per image", "precision", "recall", "F1"]
    names = ("positives_per_image", "precision", "recall", "f1")
    shown = [line([row["class"], row["observed"], *(number(row[name]) for name in names)]) for row in rows[:SHOWN]]
    title = f"{len(shown)} of {len(rows)} classes, lowest F1 first, at threshold {about['threshold']:g}:\n"
    return "\n".join([title, line(header), "|" + "---|" * len(header), *shown])


def to_csv(counts: dict[tuple, Counts], asked: tuple, classes: list[str], expected: float) -> str:
    """A row for each way of scoring, threshold and kind of entries; for the way that is set, also for each class."""
    file = io.StringIO(newline="")
    estimates = ("observed_found", "estimated_precision")
    names = ["calibrate", "temperature", "class", "entries", "threshold", *label_quality.FIGURES, *estimates]
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    for way, these in counts.items():
        for label in [None, *(range(len(classes)) if way == asked else ())]:
            for entries in label_quality.ENTRIES:
                curves = label_quality.curve(these, entries, label)
                if label is None and entries == "all":
                    curves |= label_quality.estimate(these, expected)
                fixed = {"calibrate": way[0], "temperature": way[1], "entries": entries}
                fixed["class"] = "" if label is None else classes[label]
                for at, threshold in enumerate(these.thresholds):
                    figures = {name: f"{values[at]:.6g}" for name, values in curves.items() if values[at] == values[at]}
                    writer.writerow(fixed | {"threshold": f"{threshold:g}"} | figures)
    return file.getvalue()


if __name__ == "__main__":
    run_script(main)
