"""Label photographs with the model of a finished run.

    python predict.py results/RUN photos/ [more photographs or folders] [--csv FILE] [--json FILE]
    python predict.py results/RUN --evaluate DATASET

Files that are no images are skipped and listed; then the exit status is 1.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import datasets
import metrics
import models
from datasets.pixels import accept_truncated
from datasets.walk import describe_left_out, find_images
from util.devices import pick_device
from util.errors import OneLineParser, UserError, printable, run_script
from util.files import check_outputs, write_text


def main(argv: list[str] | None = None) -> np.ndarray:
    """Label photographs from the command line `argv`; returns their (N, L) probabilities, NaN if unreadable."""
    options = parse(argv)
    accept_truncated(options.truncated)
    model = models.load(options.run, pick_device(options.gpu))
    thresholds = model.thresholds if options.threshold == "per-class" else number(options.threshold)
    test, left_out, incomplete = None, [], False
    if options.evaluate:
        test = labelled(options.evaluate, options.data_root, options.image_root, model)
        paths, names = [str(path) for path in test.paths()], test.names.tolist()
    else:
        paths, left_out, incomplete = photographs(options.photos)
        names = paths
    bad = {}  # {row: reason}
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        probs = model.predict(
            paths,
            batch_size=options.batch_size,
            workers=options.workers,
            on_bad=None if test is not None else bad.__setitem__,
            on_batch=bar.update,
        )
    infinite = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    bad = {row: bad.get(row, f"{paths[row]} has probabilities that are not finite") for row in infinite.tolist()}
    rows = [row for row in range(len(paths)) if row not in bad]
    labels = model.labels(probs[rows], thresholds)
    results = [(names[row], present, probs[row]) for row, present in zip(rows, labels, strict=True)]
    if options.csv:
        write_csv(Path(options.csv), results, model.classes)
    if options.json:
        write_lines(Path(options.json), results, model.classes)
    if test is None:
        for name, present, row in results:
            print(f"{printable(name)}  {printable(shown(row, present, model.classes, options.top))}")
    elif not bad:
        for name, value in metrics.evaluate(probs, test.true, thresholds).items():
            print(f"{name:<26} {value:.4f}")
    for line in left_out:
        print(printable(line), file=sys.stderr)
    for row, error in bad.items():
        reason = str(error).removeprefix(paths[row]).split("; ")[0]  # the rest is advice for data sets
        print(printable(f"skipped: {paths[row]}{reason}"), file=sys.stderr)
    if bad:
        print(f"{len(bad):,} of {len(paths):,} files could not be labelled", file=sys.stderr)
    if bad or incomplete:
        sys.exit(1)
    return probs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("run", help="folder of a finished run, or of its model.json and model.safetensors")
    parser.add_argument("photos", nargs="*", metavar="PHOTO_OR_FOLDER", help="photographs, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="labels printed for each photograph (default: %(default)s)")
    parser.add_argument(
        "--threshold",
        default="per-class",
        help="probability from which on a label counts as present: a number, or per-class: those that the run chose on "
        "its validation images (default: %(default)s)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write image, labels, and a column of probabilities per class")
    parser.add_argument("--json", metavar="FILE", help="write the same as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files of --csv and --json")
    parser.add_argument(
        "--evaluate", metavar="DATASET", help="print the metrics of test.json on a data set's test images"
    )
    parser.add_argument("--data-root", default="data", help="folder that holds the data sets (default: %(default)s)")
    parser.add_argument("--image-root", help="folder of the images of --evaluate, if they were moved")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--truncated", action="store_true", help="accept images that are cut short")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one per core, 8 at most)")
    parser.add_argument("-g", "--gpu", default="0", help="CUDA index, cpu or mps (default: %(default)s)")
    options = parser.parse_intermixed_args(argv)
    if min(options.top, options.batch_size, options.workers or 1) < 1:
        parser.error("--top, --batch-size and --workers must be at least 1")
    if bool(options.photos) == bool(options.evaluate):
        parser.error("name photographs or folders of them, or a labelled data set with --evaluate")
    check_outputs({"--csv": options.csv, "--json": options.json}, options.overwrite)
    return options


def number(threshold: str) -> float:
    try:
        value = float(threshold)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"--threshold takes a number in [0, 1] or per-class, not {threshold!r}")
    return value


def photographs(names: list[str]) -> tuple[list[str], list[str], bool]:
    """The named files and the images below the named folders; lines on what else is there; whether this holds files."""
    found, lines, incomplete = [], [], False
    for path in map(Path, names):
        if path.is_dir():
            images, others = find_images(path)
            found += images
            lines += [line] if (line := describe_left_out(others, path)) else []
            incomplete |= any(not other.is_dir() for paths in others.values() for other in paths)
            if not images:
                raise UserError("; ".join([f"{path} holds no images", *lines]))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} not found; name photographs, or folders of them")
    return [str(path) for path in found], lines, incomplete


def labelled(name: str, data_root: str, image_root: str | None, model: models.Predictor) -> datasets.MultiLabelDataset:
    """The test images of a data set. Raises UserError if it lacks full labels, or has other classes than the model."""
    folder = Path(name) if len(Path(name).parts) > 1 else Path(data_root) / name
    datasets.check_name(folder)
    datasets.prepare(folder)
    splits = datasets.load(folder, image_root=image_root, need_images=False)  # those of other splits may be elsewhere
    if splits.scored() is None:
        raise UserError(f"{folder} has no test images with full labels, and metrics need them")
    if splits.classes.names != model.classes:
        other = next(iter(set(splits.classes.names) ^ set(model.classes)), "in a different order")
        raise UserError(f"{folder} has other classes than the model ({other}); evaluate it on those it was trained on")
    return splits.scored()


def shown(probs: np.ndarray, present: list[str], classes: list[str], top: int) -> str:
    """One photograph's labels, the most probable first; those below their threshold in parentheses."""
    best = [
        (classes[label], f"{classes[label]} {probs[label]:.2f}") for label in np.argsort(-probs, kind="stable")[:top]
    ]
    inside = [text for name, text in best if name in present]
    below = [text for name, text in best if name not in present]
    return "  ".join([*inside, *([f"({'  '.join(below)})"] if below else [])])


Results = list[tuple[str, list[str], np.ndarray]]  # for each image its name, the present labels, (L,) probabilities


def write_csv(path: Path, results: Results, classes: list[str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["image", "labels", *classes])
    for name, present, probs in results:
        writer.writerow([name, "|".join(present), *(f"{value:.6f}" for value in probs.tolist())])
    write_text(path, file.getvalue())


def write_lines(path: Path, results: Results, classes: list[str]) -> None:
    """A JSON list of {"image": ..., "labels": [...], "probabilities": {class: p}}, a line each."""
    lines = [
        json.dumps({"image": name, "labels": present, "probabilities": dict(zip(classes, probs.tolist(), strict=True))})
        for name, present, probs in results
    ]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    run_script(main)
