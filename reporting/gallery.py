"""The page's gallery: test images with their observed, pseudo, true and predicted labels, worst mistakes first."""

import base64
import io
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from config import Config
from datasets import files, load
from datasets.pixels import rgb
from pseudo_labels import rules
from reporting.runs import Run
from util.devices import default_workers
from util.errors import UserError

SIDE = 224  # pixels of the longer side of an image on the page
SUSPECTS, SUSPECT_ROWS = 24, 5_000  # on the page, and in the CSV file
PER_CLASS, CLASSES = 3, 24  # mistakes of each kind of a class, and classes (those with most mistakes)
KINDS = ("none", "missed", "extra", "hit")  # of a label: neither true nor predicted, true, predicted, both


def make(run: Run) -> dict:
    """A run's mistakes. A label is predicted if its probability reaches its threshold, which was chosen on validation.

    suspects        labels that are predicted and not true, the most probable first: image, class, probability;
                    csv: the same as a data URI
    missing_labels  cards of the first suspects
    by_class        (class, number of mistakes, cards of the worst ones), classes with most mistakes first

    A card has an image's name, a headline, the labels (name, probability, one of KINDS, marks for observed labels and
    pseudo-labels), and the picture as a data URI, "" if the file cannot be read.
    """
    config, names = Config(**run.config), run.per_class.index
    images, probs, true = run.predictions()
    predicted = probs >= run.per_class["threshold"].to_numpy()
    kinds = 2 * predicted + (true == 1)

    # The mistakes, the worst first, and those that are shown
    image, label = np.nonzero(predicted != (true == 1))
    extra = predicted[image, label]
    badness = np.where(extra, probs[image, label], 1 - probs[image, label])
    mistakes = pd.DataFrame({"image": image, "label": label, "extra": extra, "badness": badness})
    mistakes = mistakes.sort_values("badness", ascending=False, kind="stable")
    suspects = mistakes[mistakes["extra"]][:SUSPECT_ROWS]
    counts = mistakes["label"].value_counts()[:CLASSES]
    worst = mistakes.groupby(["label", "extra"], sort=False).head(PER_CLASS)
    worst = worst[worst["label"].isin(counts.index)].sort_values("extra", ascending=False, kind="stable")
    shown = sorted({*suspects["image"][:SUSPECTS], *worst["image"]})

    # What is known of these images
    marks = np.full(true.shape, "", dtype=object)
    marks[shown], root, notes = _marks(config, images[shown], marks[shown])
    pictures = {row: _picture(root / str(images[row])) for row in shown}
    if absent := sum(not picture for picture in pictures.values()):
        notes.append(f"{absent} of {len(shown)} images are not shown, because no readable files are below {root}")

    def card(row: int, label: int, extra: bool) -> dict:
        ranked = np.argsort(-probs[row], kind="stable")
        listed = [k for k in ranked if kinds[row, k] or marks[row, k] or k == label]
        return {
            "name": str(images[row]),
            "headline": f"{names[label]} {probs[row, label]:.2f}, {'not labelled' if extra else 'missed'}",
            "labels": [(names[k], probs[row, k], KINDS[kinds[row, k]], marks[row, k]) for k in listed],
            "picture": pictures[row],
        }

    def cards(part: pd.DataFrame) -> list[dict]:
        return [card(*mistake) for mistake in part[["image", "label", "extra"]].itertuples(index=False, name=None)]

    columns = {
        "image": images[suspects["image"]],
        "class": names[suspects["label"]],
        "probability": suspects["badness"],
    }
    table = pd.DataFrame(columns)
    text = table.to_csv(index=False, float_format="%.4f")
    return {
        "run": run,
        "suspects": table,
        "csv": _data_uri("text/csv", text.encode(errors="backslashreplace")),
        "missing_labels": cards(suspects[:SUSPECTS]),
        "by_class": [(names[k], count, cards(worst[worst["label"] == k])) for k, count in counts.items()],
        "notes": notes,
    }


def _picture(path: Path) -> str:
    """A small JPEG as a data URI; "" if the file is absent or damaged."""
    buffer = io.BytesIO()
    with suppress(Exception), Image.open(path) as image:  # Pillow's formats each raise their own
        image.draft("RGB", (SIDE, SIDE))
        image = Image.fromarray(rgb(image))
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, format="JPEG", quality=80)
    return _data_uri("image/jpeg", buffer.getvalue()) if buffer.getvalue() else ""


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _marks(config: Config, images: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, Path, list[str]]:
    """The marks of (n, L) labels of test images, the folder of the images, and notes. ● is an observed label, ◆ a
    pseudo-label, if the teacher scores the images in seconds."""
    rule, teacher = config.method.pseudo_labels, replace(config, precision="float32").asked_teacher()
    root, notes = config.folder, []
    try:
        root = files.image_root(config.folder, config.image_root)
        split = load(config.folder, need_images=False, draw=config.draw)
        test = split.test.rows(pd.Series(range(len(split.test)), split.test.names).loc[images].to_numpy())
        marks = np.where(test.observed == 1, " ●", "").astype(object)
        if rule and config.calibrate != "none":
            notes.append("pseudo-labels are not shown: the calibration belongs to the training images")
        elif rule and not teacher.is_quick():
            notes.append(f"pseudo-labels are not shown: {config.teacher} would take minutes to score these images")
        elif rule and len(test):
            options = dict(batch_size=config.eval_batch_size, device=torch.device("cpu"), workers=default_workers())
            with tempfile.TemporaryDirectory() as folder:
                scores = teacher.similarities(test, split.classes, Path(folder), **options)
            labels, _, _ = rules.make(rule, config.hparams, scores, test.observed, pool=config.teacher_pool)
            marks += np.where(labels > 0.5, " ◆", "").astype(object)
    except (UserError, KeyError) as error:
        notes.append(f"observed labels or pseudo-labels are not shown: {error}")
    return marks, root, notes
