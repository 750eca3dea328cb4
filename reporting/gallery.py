"""The page's gallery: test images with their observed, pseudo, true and predicted labels, worst mistakes first."""

import base64
import csv
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct
from PIL import Image

import pseudo_labels
from config import Config
from datasets import Classes, MultiLabelDataset, files
from datasets.images import rgb
from reporting.runs import Run, read_per_class, read_predictions
from util import devices
from util.errors import UserError
from util.files import read_json

SIDE = 224  # pixels of the longer side of an image on the page
SUSPECTS, SUSPECT_ROWS = 24, 5_000  # on the page, and in the CSV file
PER_CLASS, CLASSES = 3, 24  # mistakes of each kind of a class, and classes (those with most mistakes)


@dataclass
class Label:
    """A label of an image: kind is hit, extra (predicted, not true), missed (true, not predicted) or none."""

    name: str
    prob: float
    kind: str
    observed: bool = False
    pseudo: bool = False


@dataclass
class Card:
    """An image with its labels; picture: a data URI, or "" where the file cannot be read."""

    name: str
    headline: str
    labels: list[Label]
    picture: str = ""


@dataclass
class Gallery:
    """Of one run. A label is predicted where its probability reaches its threshold, which was chosen on validation.

    by_class  (class, number of mistakes, the worst of them), classes with most mistakes first
    suspects  rows of the CSV file (image, class, probability)
    """

    run: Run
    missing_labels: list[Card] = field(default_factory=list)
    by_class: list[tuple[str, int, list[Card]]] = field(default_factory=list)
    suspects: list[tuple[str, str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make(run: Run) -> Gallery:
    """Raises UserError where the run's predictions or its data set cannot be read."""
    images, probs, labels = read_predictions(run.folder)
    config = _config(run)
    if probs.shape[1] == 0 or not len(images):
        raise UserError(f"{run.folder.name} has no test predictions")
    gallery = Gallery(run)
    names, thresholds = _classes(run, labels.shape[1], gallery.notes)
    predicted = probs >= thresholds
    observed = _observed(config, images, gallery.notes)
    wrong = np.where((labels == 0) & predicted, probs, -1.0)  # how bad a mistake is; -1: it is none
    missed = np.where((labels == 1) & ~predicted, 1 - probs, -1.0)

    # Which images
    suspects = [(row, label) for row, label in _largest(wrong, SUSPECT_ROWS) if wrong[row, label] >= 0]
    gallery.suspects = [(str(images[row]), names[label], float(probs[row, label])) for row, label in suspects]
    shown = suspects[:SUSPECTS]
    mistakes = (predicted != (labels == 1)).sum(axis=0)
    classes = np.argsort(-mistakes, kind="stable")[:CLASSES]
    of_class = {label: [_worst(badness, label) for badness in (wrong, missed)] for label in classes.tolist()}
    rows = sorted({row for row, _ in shown} | {row for kinds in of_class.values() for kind in kinds for row, _ in kind})

    # What is known of them
    root = _root(config, gallery.notes)
    pictures = {row: _picture(root / str(images[row])) if root else "" for row in rows}
    if root and (absent := sum(not picture for picture in pictures.values())):
        gallery.notes.append(
            f"{absent} of these {len(rows)} images cannot be read below {root}; have they moved since the run?"
        )
    pseudo = _pseudo(run, config, root, images, names, rows, gallery.notes)

    def card(row: int, label: int, what: str) -> Card:
        chips = []
        for other in np.argsort(-probs[row], kind="stable").tolist():
            outcome = bool(predicted[row, other]), bool(labels[row, other] == 1)
            kind = {(True, True): "hit", (True, False): "extra", (False, True): "missed"}.get(outcome, "none")
            marks = bool(observed is not None and observed[row, other] == 1), other in pseudo.get(row, ())
            if kind != "none" or any(marks) or other == label:
                chips.append(Label(names[other], float(probs[row, other]), kind, *marks))
        return Card(str(images[row]), f"{names[label]} {probs[row, label]:.2f}, {what}", chips, pictures[row])

    gallery.missing_labels = [card(row, label, "not labelled") for row, label in shown]
    gallery.by_class = [
        (
            names[label],
            int(mistakes[label]),
            [card(*place, "not labelled") for place in extra] + [card(*place, "missed") for place in lost],
        )
        for label, (extra, lost) in of_class.items()
        if extra or lost
    ]
    return gallery


def _worst(badness: np.ndarray, label: int) -> list[tuple[int, int]]:
    """(row, label) of a class's worst mistakes."""
    rows = np.argsort(-badness[:, label], kind="stable")[:PER_CLASS].tolist()
    return [(row, label) for row in rows if badness[row, label] >= 0]


def to_csv(suspects: Iterable[tuple[str, str, float]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "class", "probability"])
    writer.writerows((image, name, f"{prob:.4f}") for image, name, prob in suspects)
    return file.getvalue()


def _largest(values: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(row, column) of the largest entries, in order."""
    flat = values.ravel()
    count = min(count, flat.size)
    places = np.argpartition(-flat, count - 1)[:count]
    places = places[np.argsort(-flat[places], kind="stable")]
    return [divmod(int(place), values.shape[1]) for place in places]


def _config(run: Run) -> Config:
    try:
        return Config(**run.config)
    except TypeError:
        raise UserError(f"{run.folder.name} is from another version: its settings are not those of today") from None


class Model(Struct):
    """model.json, as far as the gallery reads it."""

    thresholds: list[float] | None = None


def _classes(run: Run, num_labels: int, notes: list[str]) -> tuple[list[str], np.ndarray]:
    """Class names, and the (L,) thresholds of the probabilities."""
    try:
        table = read_per_class(run.folder)
        thresholds = [threshold for _, _, threshold in table.values()]
        if np.isnan(thresholds).any():  # of an earlier version
            thresholds = read_json(run.folder / "model.json", Model, how="").thresholds or [0.5] * len(table)
        if not len(table) == len(thresholds) == num_labels:
            raise UserError(f"per_class.csv does not describe {num_labels} classes")
        return list(table), np.array(thresholds)
    except UserError as error:
        notes.append(f"classes are numbered, and predicted from a probability of 0.5 on: {error}")
        return [f"class {label}" for label in range(num_labels)], np.full(num_labels, 0.5)


def _observed(config: Config, images: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """(N, L) in {-1, 0, +1}: the observed labels of the test images of the run, if they are still there."""
    try:
        names, _, observed = files.read_all(config.folder)["val"]
        rows = {name: row for row, name in enumerate(names.tolist())}
        return observed[[rows[name] for name in images.tolist()]]
    except UserError as error:
        notes.append(f"observed labels are not shown: {error}")
    except KeyError as error:
        notes.append(f"observed labels are not shown: the data set no longer has {error}")
    return None


def _root(config: Config, notes: list[str]) -> Path | None:
    try:
        return files.image_root(config.folder, config.image_root)
    except UserError as error:
        notes.append(f"images are not shown: {error}")
        return None


def _picture(path: Path) -> str:
    """A small JPEG as a data URI; "" where the file is absent or damaged."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))
            image = Image.fromarray(rgb(image))
            image.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=80)
    except Exception:  # Pillow's formats each raise their own
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pseudo(
    run: Run, config: Config, root: Path | None, images: np.ndarray, names: list[str], rows: list[int], notes: list[str]
) -> dict[int, set[int]]:
    """{row: labels that the teacher would give it}, where the teacher can say so in seconds."""
    rule = config.method.pseudo_labels
    if rule is None or not rows:
        return {}
    teacher = config.asked_teacher()
    if config.calibrate != "none":
        notes.append("pseudo-labels are not shown: the calibration belongs to the training images")
    elif not teacher.is_quick() or (teacher.scores_new_images and root is None):
        notes.append(f"pseudo-labels are not shown: {config.teacher} would take a while to score these images")
    else:
        chosen, num_labels = images[rows], len(names)
        split = MultiLabelDataset(root or Path(), chosen, None, np.zeros((len(rows), num_labels)))
        try:
            classes = files.read_classes(config.folder, num_labels)
            with tempfile.TemporaryDirectory() as folder:
                similarity = _similarities(config, split, classes, Path(folder))
            labels, _, _ = pseudo_labels.make(
                rule, config.hparams, similarity, split.observed, calibration="none", pool=config.teacher_pool
            )
            return {row: set(np.flatnonzero(labels[place] > 0.5).tolist()) for place, row in enumerate(rows)}
        except UserError as error:
            notes.append(f"pseudo-labels are not shown: {error}")
    return {}


def _similarities(config: Config, split: MultiLabelDataset, classes: Classes, folder: Path) -> list[np.ndarray]:
    how = dict(batch_size=config.eval_batch_size, device=torch.device("cpu"), workers=devices.default_workers())
    config = replace(config, precision="float32")  # a GPU's bf16 would be float16 here
    return config.asked_teacher().similarities(split, classes, folder, **how)
