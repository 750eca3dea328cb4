"""How good a teacher's pseudo-labels would be, at every threshold and several temperatures, without training.

    python assess_teacher.py -d pascal [--similarity FILE.npz] [--calibrate matrix] [--temperatures 0.005 0.01 0.02]

Takes main.py's options for data, teacher, method and rule, too. If the full labels of the training images are not
known, or with --observed-only, precision and recall are estimated from the observed labels.
"""

from util.errors import OneLineParser, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

import config as configuration
import datasets
import supervision
from pseudo_labels import label_quality, rules
from util import devices
from util.files import atomic, check_outputs, writable_folder, write_text
from util.settings import inside

TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1)
SHOWN = 12  # classes in the printed table
FIGURES = ["precision", "recall", "f1"]
ESTIMATES = ["observed_found", "estimated_precision"]
COLUMNS = ["calibrate", "temperature", "class", "entries", "threshold", *FIGURES, "positives_per_image", *ESTIMATES]


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__, epilog="All options of main.py for data, teacher, method and rule are taken too.")
    text = "of the softmax, beside --temp (default: %(default)s)"
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, metavar="T", help=text)
    parser.add_argument("--observed-only", action="store_true", help="as if only the observed labels were known")
    text = "mean number of true labels of an image, to estimate precision if these are not known (default: 1)"
    parser.add_argument("--positives-per-image", type=float, metavar="K", help=text)
    text = "CSV file and figure, without .csv and .png (default: RESULTS_DIR/pseudo_labels_DATASET)"
    parser.add_argument("--out", metavar="PATH", help=text)
    options, rest = parser.parse_known_args(argv)
    config = configuration.parse(rest)
    rule = config.method.pseudo_labels
    if rule is None:
        parser.error(f"the method {config.loss} takes no pseudo-labels; choose one that does with --loss")
    given = [] if options.positives_per_image is None else [options.positives_per_image]
    if not all(inside(value, "(0, inf)") for value in [*options.temperatures, *given]):
        parser.error("--temperatures and --positives-per-image must be above 0")
    out = Path(config.results_dir, f"pseudo_labels_{config.dataset_name}") if options.out is None else options.out
    csv_file, figure = Path(f"{out}.csv"), Path(f"{out}.png")
    check_outputs({"--out": out}, overwrite=True)
    check_outputs({"--out": csv_file}, config.overwrite, ours=(",".join(COLUMNS[:5]).encode(),))
    check_outputs({"--out": figure}, config.overwrite or csv_file.exists())

    # Data and similarities
    device = devices.pick_device(config.gpu)
    config = replace(config, precision=devices.pick_precision(config.precision, device))
    devices.set_threads(config.threads)
    datasets.prepare(config.folder)
    cache = writable_folder(config.cache_folder, "--cache-root")
    read = dict(image_root=config.image_root, skip_missing=config.skip_missing, draw=config.draw)
    splits = datasets.load(config.folder, need_images=config.asked_teacher().scores_new_images, **read)
    train, classes = splits.train, splits.classes.names
    runtime = dict(cache=cache, device=device, workers=config.workers or devices.default_workers())
    similarities = supervision.similarities_of(config, splits.classes, train, **runtime)
    for line in rules.warnings(similarities, train.observed):
        print(line)
    true = None if options.observed_only else train.true
    known = options.positives_per_image or (None if options.observed_only else splits.positives_per_image())
    expected = known or 1.0

    # Quality, for every way of scoring
    threshold, temperature = rule.threshold(config.hparams), config.hparams.get("temperature")
    chosen = (supervision.calibration_of(config), temperature)
    others = options.temperatures if "temperature" in config.hparams else []
    ways = sorted({("none", value) for value in [*others, temperature]})
    qualities, figures = {}, {}
    for way in [*ways, *([] if chosen in ways else [chosen])]:
        hparams, forms = config.hparams | {"temperature": way[1]}, dict(calibration=way[0], pool=config.teacher_pool)
        pseudo, scores, notes = rules.make(rule, hparams, similarities, train.observed, **forms)
        print(*notes, sep="\n", end="\n" if notes else "")
        counts = label_quality.count(scores, train.observed, true, [threshold] if threshold else [])
        qualities[way] = label_quality.describe(pseudo, scores, train.observed, true)
        figures[way] = every_figure(counts, expected, classes if way == chosen else [])
        if way == chosen:
            quality = label_quality.as_json(counts, classes, threshold, expected)

    # Tables and figure
    print(f"{config.dataset_name}: {len(train):,} training images, {len(classes)} labels")
    if true is None:
        bound = "" if known else ", which makes it a lower bound (see --positives-per-image)"
        print("recall is estimated by the share of the observed positives that is found, because the full labels are")
        print(f"not known; precision is estimated by this share and {expected:g} true labels per image{bound}")
    if threshold is None and true is not None:
        by_rule = [{"scores": in_words(*way)} | found for way, found in qualities.items()]
        print(f"\n{as_text(pd.DataFrame(by_rule).dropna(axis=1, how='all'))}\n")
    else:
        print(f"\n{over_thresholds(figures, threshold)}\n")
    if true is not None and threshold is not None:
        print(f"{of_classes(quality)}\n")
    rows = [part.assign(calibrate=way[0], temperature=way[1]) for way, part in figures.items()]
    write_text(csv_file, pd.concat(rows).reindex(columns=COLUMNS).to_csv(index=False, float_format="%.6g"))
    with atomic(figure) as temporary:
        label_quality.draw(temporary, quality, f"{config.dataset_name}, {in_words(*chosen)}")
    print(f"written: {csv_file}, {figure}")


def in_words(calibration: str, temperature: float | None) -> str:
    parts = [] if temperature is None else [f"temperature {temperature:g}"]
    return ", ".join([*parts, "not calibrated" if calibration == "none" else f"calibrated by {calibration}"])


def every_figure(counts: label_quality.Counts, expected: float, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each threshold and kind of entries, of all classes together (class "") and of each one."""
    parts = []
    for label, name in [(None, ""), *enumerate(classes)]:
        for entries in label_quality.ENTRIES:
            columns = label_quality.curve(counts, entries, label)
            if label is None and entries == "all":
                columns |= label_quality.estimate(counts, expected)
            parts.append(pd.DataFrame({"class": name, "entries": entries, "threshold": counts.thresholds} | columns))
    return pd.concat(parts)


def as_text(rows: pd.DataFrame, formats: str | Sequence[str] = ".3f") -> str:
    """A table whose first column is text, for the terminal."""
    rows.columns = [name.replace("_", " ").replace("f1", "F1").replace(", unobserved entries", "*") for name in rows]
    note = "\n\n* over the unobserved entries only" if any("*" in name for name in rows) else ""
    return rows.to_markdown(index=False, floatfmt=formats, missingval="-", disable_numparse=[0]) + note


def over_thresholds(figures: dict[tuple, pd.DataFrame], threshold: float | None) -> str:
    """For every way of scoring: the figures at the threshold that is set, and at the one with the best F1."""
    rows = []
    for way, every in figures.items():
        whole, unobserved = (
            every.query("`class` == '' and entries == @entries").set_index("threshold")
            for entries in label_quality.ENTRIES
        )
        if "f1" in every:
            columns = whole[["positives_per_image", *FIGURES]].join(unobserved[FIGURES].add_suffix("*"))
            best = {"best F1": columns["f1"], "best F1*": columns["f1*"]}
        else:
            columns = whole[["positives_per_image", *ESTIMATES]]
            best = {"best F1 (estimate)": 2 / (1 / columns[ESTIMATES]).sum(axis=1, skipna=False)}
        places = {} if threshold is None else {"set": threshold}
        places |= {name: values.fillna(0).idxmax() for name, values in best.items()}
        first = {"scores": in_words(*way)}
        rows += [first | {"": title, "threshold": at} | columns.loc[at].to_dict() for title, at in places.items()]
    return as_text(pd.DataFrame(rows), ["", "", "g", *[".3f"] * (len(rows[0]) - 3)])


def of_classes(quality: dict) -> str:
    """The classes with the lowest F1 at the threshold that is set."""
    rows = pd.DataFrame(quality["classes"]).astype(dict.fromkeys(FIGURES, float)).fillna({"f1": 0.0})
    shown = rows.sort_values("f1", kind="stable").head(SHOWN)[["class", "observed", "positives_per_image", *FIGURES]]
    title = f"{len(shown)} of {len(rows)} classes, lowest F1 first, at threshold {quality['threshold']:g}:"
    return f"{title}\n\n{as_text(shown)}"


if __name__ == "__main__":
    run_script(main)
