"""The paper's idea: a frozen teacher's similarities, sharpened by a temperature, become labels.

`assign` is the rule; `describe` says how good its labels are; `load_similarity` reads a file of similarities.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metrics
from cli import UserError
from storage import why

ROWS = 4096  # images labelled at a time: bounds the memory beside the (N, L) result


def assign(
    similarity: np.ndarray | Tensor, *, temperature: float, threshold: float, negative_fraction: float
) -> np.ndarray | Tensor:
    """Pseudo-labels by temperature softmax and threshold (Xing et al. 2024, section 3.2).

    s = softmax(similarity / temperature) over the labels of an image. A label with s > threshold is positive; the
    int(negative_fraction * L) labels with the smallest s are negative, and win where both apply; the rest is unknown.

    similarity  (N, L) float, cosine of image and class text
    returns     (N, L) int8 in {-1, 0, +1}; 0 = the teacher abstains. A tensor (on the same device) for a tensor,
                else an array
    """
    given = similarity
    similarity = torch.as_tensor(given)
    labels = torch.zeros(similarity.shape, dtype=torch.int8, device=similarity.device)
    num_labels = similarity.shape[1]
    num_negative = int(negative_fraction * num_labels)
    for rows, result in zip(similarity.split(ROWS), labels.split(ROWS), strict=True):
        s = torch.softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)) / temperature, dim=1)
        result[s > threshold] = 1
        if num_negative:
            result.scatter_(1, s.argsort(dim=1, stable=True)[:, :num_negative], -1)
    return labels if isinstance(given, Tensor) else labels.numpy()


def describe(
    pseudo: np.ndarray, similarity: np.ndarray, observed: np.ndarray, true: np.ndarray, *, temperature: float
) -> dict[str, float]:
    """How good the pseudo-labels of the training images are.

    pseudo, observed  (N, L) in {-1, 0, +1};  true  (N, L) in {0, 1};  similarity  (N, L) float
    returns           rows of the table printed before training; a share of nothing is NaN
    """
    counts = dict.fromkeys(("positive", "negative", "known", "found", "right", "true", "absent"), 0)
    for start in range(0, len(pseudo), ROWS):
        part = slice(start, start + ROWS)
        positive, negative, known = pseudo[part] == 1, pseudo[part] == -1, observed[part] == 1
        present = true[part] == 1
        for name, entries in {
            "positive": positive,
            "negative": negative,
            "known": known,
            "found": positive & known,
            "right": positive & present,
            "true": present,
            "absent": negative & ~present,
        }.items():
            counts[name] += np.count_nonzero(entries)

    def share(part: str, whole: str) -> float:
        return counts[part] / counts[whole] if counts[whole] else float("nan")

    return {
        "positives an image": counts["positive"] / len(pseudo),
        "observed labels found": share("found", "known"),
        "precision of positives": share("right", "positive"),
        "recall of positives": share("right", "true"),
        "negatives an image": counts["negative"] / len(pseudo),
        "precision of negatives": share("absent", "negative"),
        "teacher's own mAP, %": metrics.mean_average_precision(softmax(similarity, temperature), true),
    }


def softmax(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """(N, L) float: softmax(similarity / temperature) over the labels of each image."""
    result = np.empty_like(similarity)
    for start in range(0, len(similarity), ROWS):
        rows = torch.from_numpy(similarity[start : start + ROWS])
        result[start : start + ROWS] = torch.softmax(rows / temperature, dim=1).numpy()
    return result


def table(quality: dict[str, float]) -> str:
    """The rows of `describe` as text; what cannot be said (a share of nothing) is a dash."""
    lines = [f"  {name:<24} {'-' if value != value else f'{value:8.4f}'.strip():>8}" for name, value in quality.items()]
    return "\n".join(["pseudo-labels of the training images:", *lines])


def load_similarity(path: str | Path, images: np.ndarray, classes: list[str]) -> np.ndarray:
    """(N, L) float similarities of `images` and `classes` from an npz file of `images`, `classes`, `similarity`.

    Rows are found by image name and columns by class name, so order and surplus do not matter. Raises UserError for
    a file that is not such a file, and for the first image or class that it lacks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names, columns, similarity = (file[name] for name in ("images", "classes", "similarity"))
    except Exception as error:  # NumPy, zip and zlib each raise their own
        raise UserError(f"{path} is not an npz file with images, classes and similarity ({why(error)})") from None
    if similarity.shape != (len(names), len(columns)) or similarity.dtype.kind != "f":
        raise UserError(
            f"{path}: similarity is {similarity.dtype} {similarity.shape}, expected float of "
            f"{len(names)} images x {len(columns)} classes"
        )
    rows = _positions(images, names, f"{path} has no row for the image", "of the training images")
    columns = _positions(np.array(classes), columns, f"{path} has no column for the class", "of the classes")
    chosen = similarity[np.ix_(rows, columns)]
    if not np.isfinite(chosen).all():
        row = int(np.flatnonzero(~np.isfinite(chosen).all(axis=1))[0])
        raise UserError(f"{path}: the similarities of {images[row]} are not all finite")
    return chosen


def _positions(wanted: np.ndarray, present: np.ndarray, missing: str, of_what: str) -> list[int]:
    where = {name: position for position, name in enumerate(present.tolist())}
    absent = [name for name in wanted.tolist() if name not in where]
    if absent:
        raise UserError(f"{missing} {absent[0]!r} ({len(absent):,} {of_what} are missing)")
    return [where[name] for name in wanted.tolist()]
