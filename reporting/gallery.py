"""The page's gallery: test images with their observed, pseudo, true and predicted labels, worst mistakes first."""

import base64
import io
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from config import Config
from datasets import Classes, MultiLabelDataset, files, load
from datasets.pixels import rgb
from pseudo_labels import rules
from reporting.runs import Run, read_per_class, read_predictions
from util.devices import default_workers
from util.errors import UserError

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
    """An image with its labels; picture: a data URI, or "" if the file cannot be read."""

    name: str
    headline: str
    labels: list[Label]
    picture: str = ""


@dataclass
class Gallery:
    """Of one run. A label is predicted if its probability reaches its threshold, which was chosen on validation.

    by_class  (class, number of mistakes, the worst of them), classes with most mistakes first
    suspects  labels that are predicted and not true, the most probable first: image, class, probability
    """

    run: Run
    missing_labels: list[Card] = field(default_factory=list)
    by_class: list[tuple[str, int, list[Card]]] = field(default_factory=list)
    suspects: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: list[str] = field(default_factory=list)


def make(run: Run) -> Gallery:
    """Raises UserError if the run's data set has no pictures, or cannot be read."""
    config, gallery = Config(**run.config), Gallery(run)
    images, probs, labels = read_predictions(run.folder)
    classes = read_per_class(run.folder)
    names, predicted = list(classes.index), probs >= classes["threshold"].to_numpy()
    mistakes = pd.DataFrame(
        [(row, label) for row, label in np.argwhere(predicted != (labels == 1))], columns=["row", "label"], dtype=int
    )
    mistakes["extra"] = predicted[mistakes["row"], mistakes["label"]]
    prob = probs[mistakes["row"], mistakes["label"]]
    mistakes["badness"] = np.where(mistakes["extra"], prob, 1 - prob)
    mistakes = mistakes.sort_values("badness", ascending=False, kind="stable")

    # Which images
    suspects = mistakes[mistakes["extra"]][:SUSPECT_ROWS]
    gallery.suspects = pd.DataFrame(
        {
            "image": images[suspects["row"]],
            "class": [names[label] for label in suspects["label"]],
            "probability": suspects["badness"],
        }
    )
    counts = mistakes["label"].value_counts()[:CLASSES]
    worst = mistakes.groupby(["label", "extra"], sort=False).head(PER_CLASS)
    worst = worst[worst["label"].isin(counts.index)]
    rows = sorted({*suspects["row"][:SUSPECTS], *worst["row"]})

    # What is known of them
    root = files.image_root(config.folder, config.image_root)
    pictures = {row: _picture(root / str(images[row])) for row in rows}
    if absent := sum(not picture for picture in pictures.values()):
        gallery.notes.append(
            f"{absent} of these {len(rows)} images are not shown, because no readable files are below {root}"
        )
    try:
        split = load(config.folder, need_images=False, draw=config.draw)
        place = {name: row for row, name in enumerate(split.test.names.tolist())}
        test = split.test.rows(np.array([place[name] for name in images.tolist()]))
        observed = test.observed == 1
    except (UserError, KeyError, AttributeError) as error:
        gallery.notes.append(f"observed labels and pseudo-labels are not shown: the data set has changed ({error})")
        observed, pseudo = np.zeros(labels.shape, bool), {}
    else:
        pseudo = _pseudo(config, test.rows(np.array(rows, int)), rows, split.classes, gallery.notes)

    def card(row: int, label: int, extra: bool) -> Card:
        chips = []
        for other in np.argsort(-probs[row], kind="stable").tolist():
            outcome = bool(predicted[row, other]), bool(labels[row, other] == 1)
            kind = {(True, True): "hit", (True, False): "extra", (False, True): "missed"}.get(outcome, "none")
            marks = bool(observed[row, other]), other in pseudo.get(row, ())
            if kind != "none" or any(marks) or other == label:
                chips.append(Label(names[other], float(probs[row, other]), kind, *marks))
        what = "not labelled" if extra else "missed"
        return Card(str(images[row]), f"{names[label]} {probs[row, label]:.2f}, {what}", chips, pictures[row])

    def cards(part: pd.DataFrame) -> list[Card]:
        return [card(*place) for place in part[["row", "label", "extra"]].itertuples(index=False, name=None)]

    gallery.missing_labels = cards(suspects[:SUSPECTS])
    for label, count in counts.items():
        part = worst[worst["label"] == label].sort_values("extra", ascending=False, kind="stable")
        gallery.by_class.append((names[label], int(count), cards(part)))
    return gallery


def _picture(path: Path) -> str:
    """A small JPEG as a data URI; "" if the file is absent or damaged."""
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
    config: Config, split: MultiLabelDataset, rows: list[int], classes: Classes, notes: list[str]
) -> dict[int, set[int]]:
    """{row: the labels that the teacher gives it} for the images of a split, if the teacher takes seconds for it."""
    rule, teacher = config.method.pseudo_labels, config.asked_teacher()
    if rule is None or not rows:
        return {}
    if config.calibrate != "none":
        notes.append("pseudo-labels are not shown: the calibration belongs to the training images")
        return {}
    if not teacher.is_quick():
        notes.append(f"pseudo-labels are not shown: {config.teacher} would take a while to score these images")
        return {}
    try:
        options = dict(batch_size=config.eval_batch_size, device=torch.device("cpu"), workers=default_workers())
        teacher = replace(config, precision="float32").asked_teacher()  # float16 is slow on a CPU
        with tempfile.TemporaryDirectory() as folder:
            similarities = teacher.similarities(split, classes, Path(folder), **options)
        options = dict(calibration="none", pool=config.teacher_pool)
        labels, _, _ = rules.make(rule, config.hparams, similarities, split.observed, **options)
    except UserError as error:
        notes.append(f"pseudo-labels are not shown: {error}")
        return {}
    return {row: set(np.flatnonzero(labels[place] > 0.5).tolist()) for place, row in enumerate(rows)}
