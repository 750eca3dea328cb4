"""Label photographs with the model of a finished run.

    python predict.py results/RUN photos/ [more photographs or folders] [--csv FILE] [--json FILE]
    python predict.py results/RUN --evaluate DATASET

Files that are no images are skipped and listed; then the exit status is 1.
"""

import argparse
import json
import sys
from pathlib import Path
from textwrap import shorten

import numpy as np
import pandas as pd
from tqdm import tqdm

import datasets
import metrics
import models
from datasets.pixels import accept_truncated
from datasets.walk import describe_left_out, find_images
from util.devices import pick_device
from util.errors import OneLineParser, UserError, printable, run_script
from util.files import check_outputs, write_text
from util.settings import inside


def main(argv: list[str] | None = None) -> np.ndarray:
    """Label photographs from the command line `argv`; returns their (N, L) probabilities, NaN if unreadable."""
    options = parse(argv)
    accept_truncated(options.truncated)
    model = models.load(options.run, pick_device(options.gpu))
    thresholds = model.thresholds if options.threshold == "per-class" else options.threshold
    test, left_out, incomplete = None, [], False
    if options.evaluate:
        test = labelled(options.evaluate, options.data_root, options.image_root, model)
        paths, names = test.paths(), test.names.tolist()
    else:
        paths, left_out, incomplete = photographs(options.photos)
        names = paths
    bad = {}  # {row: error}
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        more = dict(on_bad=None if test is not None else bad.__setitem__, on_batch=bar.update)
        probs = model.predict(paths, batch_size=options.batch_size, workers=options.workers, **more)
    for row in np.flatnonzero(~np.isfinite(probs).all(axis=1)).tolist():
        bad.setdefault(row, f"{paths[row]} has probabilities that are not finite")
    rows = [row for row in range(len(paths)) if row not in bad]
    names, labels = [names[row] for row in rows], model.labels(probs[rows], thresholds)
    if options.csv:
        table = pd.DataFrame(probs[rows], columns=model.classes)
        table.insert(0, "labels", ["|".join(present) for present in labels], allow_duplicates=True)
        table.insert(0, "image", names, allow_duplicates=True)
        write_text(options.csv, table.to_csv(index=False, float_format="%.6f"))
    if options.json:
        entries = [
            {"image": name, "labels": present, "probabilities": dict(zip(model.classes, row, strict=True))}
            for name, present, row in zip(names, labels, probs[rows].tolist(), strict=True)
        ]
        write_text(options.json, "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")
    if test is None:
        for name, present, row in zip(names, labels, probs[rows], strict=True):
            print(f"{printable(name)}  {printable(shown(row, present, model.classes, options.top))}")
    elif not bad:
        for name, value in metrics.evaluate(probs, test.true, thresholds).items():
            print(f"{name:<26} {value:.4f}")
    for row, error in bad.items():
        reason = str(error).removeprefix(paths[row]).split("; ")[0]  # the rest is advice for data sets
        left_out.append(f"skipped: {paths[row]}{reason}")
    if bad:
        left_out.append(f"{len(bad):,} of {len(paths):,} files could not be labelled")
    for line in left_out:
        print(printable(line), file=sys.stderr)
    if bad or incomplete:
        sys.exit(1)
    return probs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("run", help="folder of a finished run, or of its model.json and model.safetensors")
    parser.add_argument("photos", nargs="*", metavar="PHOTO_OR_FOLDER", help="photographs, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="labels printed for each photograph (default: %(default)s)")
    text = (
        "probability from which on a label counts as present, or per-class: the run's thresholds (default: %(default)s)"
    )
    parser.add_argument("--threshold", type=threshold, default="per-class", help=text)
    parser.add_argument("--csv", metavar="FILE", help="write image, labels, and a column of probabilities per class")
    parser.add_argument("--json", metavar="FILE", help="write the same as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files of --csv and --json")
    text = "print the metrics of test.json on a data set's test images"
    parser.add_argument("--evaluate", metavar="DATASET", help=text)
    parser.add_argument("--data-root", default="data", help="folder that holds the data sets (default: %(default)s)")
    parser.add_argument("--image-root", help="folder of the images of --evaluate, if they were moved")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one per core, 8 at most)")
    parser.add_argument("-g", "--gpu", default="0", help="CUDA index, cpu or mps (default: %(default)s)")
    options = parser.parse_intermixed_args(argv)
    if min(options.top, options.batch_size, options.workers or 1) < 1:
        parser.error("--top, --batch-size and --workers must be at least 1")
    if options.threshold != "per-class" and not inside(options.threshold, "[0, 1]"):
        parser.error(f"--threshold takes a number in [0, 1] or per-class, not {options.threshold}")
    if bool(options.photos) == bool(options.evaluate):
        parser.error("name photographs or folders of them, or a labelled data set with --evaluate")
    check_outputs({"--csv": options.csv, "--json": options.json}, options.overwrite)
    return options


def threshold(text: str) -> float | str:
    return text if text == "per-class" else float(text)


def photographs(names: list[str]) -> tuple[list[str], list[str], bool]:
    """The named files and the images in the named folders; a line on other files there; whether there are any."""
    found, lines, incomplete = [], [], False
    for path in map(Path, names):
        images, others = ([path], {}) if path.is_file() else find_images(path)
        found += images
        lines += [line] if (line := describe_left_out(others, path)) else []
        incomplete |= any(not other.is_dir() for paths in others.values() for other in paths)
        if not images:
            raise UserError("; ".join([f"no image at {path}: name photographs, or folders of them", *lines]))
    return [str(path) for path in found], lines, incomplete


def labelled(name: str, data_root: str, image_root: str | None, model: models.Predictor) -> datasets.MultiLabelDataset:
    """The test images of a data set. Raises UserError if it lacks full labels, or has other classes than the model."""
    folder = Path(name) if len(Path(name).parts) > 1 else Path(data_root) / name
    datasets.check_name(folder)
    datasets.prepare(folder)
    splits = datasets.load(folder, image_root=image_root, need_images=False)  # images of other splits may be elsewhere
    if splits.scored() is None:
        raise UserError(f"{folder} has no test images with full labels, which metrics need")
    if splits.classes.names != model.classes:
        classes = shorten(", ".join(model.classes), 200)
        raise UserError(f"{folder} does not have the classes of the model, in this order: {classes}")
    return splits.scored()


def shown(probs: np.ndarray, present: list[str], classes: list[str], top: int) -> str:
    """One photograph's labels, the most probable first; labels below their threshold in parentheses."""
    best = np.argsort(-probs, kind="stable")[:top]
    above = [f"{classes[label]} {probs[label]:.2f}" for label in best if classes[label] in present]
    below = [f"{classes[label]} {probs[label]:.2f}" for label in best if classes[label] not in present]
    return "  ".join([*above, *([f"({'  '.join(below)})"] if below else [])])


if __name__ == "__main__":
    run_script(main)
