"""Label photographs with the model of a finished run.

    python predict.py results/RUN photos/ [more photographs or folders] [--csv FILE] [--json FILE]
    python predict.py results/RUN --evaluate DATASET

A file that is not a photograph is skipped and listed; then the exit status is 1.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import datasets
import metrics
import models
from util.devices import pick_device
from util.errors import OneLineParser, UserError, run_script
from util.files import write_text


def main(argv: list[str] | None = None) -> np.ndarray:
    """Label photographs from the command line `argv`; returns their (N, L) probabilities, NaN where there is none."""
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
    parser.add_argument(
        "--evaluate", metavar="DATASET", help="print the metrics of test.json on a data set's test images"
    )
    parser.add_argument("--data-root", default="data", help="folder that holds the data sets (default: %(default)s)")
    parser.add_argument("--image-root", help="where the images of --evaluate lie, if not where its files say")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one per core, 8 at most)")
    parser.add_argument("-g", "--gpu", default="0", help="CUDA index, or cpu (default: %(default)s)")
    options = parser.parse_args(argv)
    if min(options.top, options.batch_size, options.workers or 1) < 1:
        parser.error("--top, --batch-size and --workers must be at least 1")
    if bool(options.photos) == bool(options.evaluate):
        parser.error("name photographs or folders of them, or a labelled data set with --evaluate")

    model = models.load(options.run, pick_device(options.gpu))
    thresholds = model.thresholds if options.threshold == "per-class" else number(options.threshold)
    test = None
    if options.evaluate:
        test = labelled(options.evaluate, options.data_root, options.image_root, model)
        paths, names = [str(path) for path in test.paths()], test.names.tolist()  # without keys of their content
    else:
        paths = names = [str(path) for path in photographs(options.photos)]
    bad = []
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        probs = model.predict(
            paths,
            batch_size=options.batch_size,
            workers=options.workers,
            on_bad=None if test is not None else lambda row, error: bad.append((row, error)),
            on_batch=bar.update,
        )
    readable = np.isfinite(probs).all(axis=1)
    rows = np.flatnonzero(readable)
    names, probs_of, labels = [names[row] for row in rows], probs[rows], model.labels(probs[rows], thresholds)
    if options.csv:
        write_csv(Path(options.csv), names, labels, probs_of, model.classes)
    if options.json:
        write_lines(Path(options.json), names, labels, probs_of, model.classes)
    if test is not None:
        for name, value in metrics.evaluate(probs, test.true, thresholds).items():
            print(f"{name:<26} {value:.4f}")
    else:
        for name, present, row in zip(names, labels, probs_of, strict=True):
            print(f"{name}  {shown(row, present, model.classes, options.top)}")
    for row, error in bad:
        reason = str(error).removeprefix(paths[row]).split("; ")[0]  # the rest is advice for data sets
        print(f"skipped: {paths[row]}{reason}", file=sys.stderr)
    if bad:
        print(f"{len(bad):,} of {len(paths):,} files could not be read as images", file=sys.stderr)
        sys.exit(1)
    return probs


def number(threshold: str) -> float:
    try:
        value = float(threshold)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"--threshold takes a number in [0, 1] or per-class, not {threshold!r}")
    return value


def photographs(arguments: Iterable[str]) -> Iterator[Path]:
    """The files that are named, and those of a picture's kind below the folders that are named, sorted.

    Raises UserError for a name that is neither, and for a folder without pictures.
    """
    Image.init()
    kinds = Image.registered_extensions().keys()
    for argument in map(Path, arguments):
        if argument.is_dir():
            found = [Path(top) / name for top, _, names in os.walk(argument) for name in names if name[0] != "."]
            found = sorted(path for path in found if path.suffix.lower() in kinds)
            if not found:
                raise UserError(f"{argument} holds no pictures; name a folder of photographs, or photographs")
            yield from found
        elif argument.exists():
            yield argument
        else:
            raise UserError(f"{argument} not found; name photographs, or folders of them")


def labelled(name: str, data_root: str, image_root: str | None, model: models.Predictor) -> datasets.MultiLabelDataset:
    """The test images of a data set. Raises UserError where full labels are unknown, or are those of other classes."""
    folder = Path(name) if len(Path(name).parts) > 1 else Path(data_root) / name
    datasets.check_name(folder)
    datasets.prepare(folder)
    splits = datasets.load(folder, image_root=image_root, need_images=False)  # those of other splits may be elsewhere
    if splits.scored() is None:
        raise UserError(f"{folder} has no test images with full labels, and metrics need them")
    if splits.classes.names != model.classes:
        other = next(iter(set(splits.classes.names) ^ set(model.classes)), "in another order")
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


def write_csv(path: Path, names: list[str], labels: list[list[str]], probs: np.ndarray, classes: list[str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["image", "labels", *classes])
    for name, present, row in zip(names, labels, probs.tolist(), strict=True):
        writer.writerow([name, "|".join(present), *(f"{value:.6f}" for value in row)])
    write_text(path, file.getvalue())


def write_lines(path: Path, names: list[str], labels: list[list[str]], probs: np.ndarray, classes: list[str]) -> None:
    """A JSON list of {"image": ..., "labels": [...], "probabilities": {class: p}}, a line each."""
    lines = [
        json.dumps({"image": name, "labels": present, "probabilities": dict(zip(classes, row, strict=True))})
        for name, present, row in zip(names, labels, probs.tolist(), strict=True)
    ]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    run_script(main)
