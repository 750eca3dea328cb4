"""The paper's idea: a frozen teacher's similarities become labels.

A rule has two steps: similarities -> scores in [0, 1], and scores -> labels. `describe` says how good the labels are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import metrics
from util.settings import Setting

ROWS = 4096  # images labelled at a time: bounds the memory beside the (N, L) result


@dataclass(frozen=True)
class Rule:
    """How similarities become pseudo-labels.

    score     (similarity (N, L) float, *, settings by name) -> (N, L) float in [0, 1]
    label     (scores (N, L) float, *, settings by name) -> (N, L) int8 in {-1, 0, +1}, or float in [0, 1]
    settings  of both, by name
    """

    score: Callable[..., np.ndarray]
    label: Callable[..., np.ndarray]
    settings: dict[str, Setting]


def softmax(similarity: np.ndarray, *, temperature: float) -> np.ndarray:
    """Scores: softmax(similarity / temperature) over the labels of each image (Xing et al. 2024, section 3.2).

    similarity  (N, L) float, cosine of image and class text
    returns     (N, L) float in [0, 1], each row adds up to 1
    """
    scores = np.empty(similarity.shape, dtype=np.promote_types(similarity.dtype, np.float32))
    for start in range(0, len(similarity), ROWS):
        rows = torch.from_numpy(similarity[start : start + ROWS].astype(scores.dtype, copy=False))
        scores[start : start + ROWS] = torch.softmax(rows / temperature, dim=1).numpy()
    return scores


def threshold_labels(scores: np.ndarray, *, threshold: float, negative_fraction: float) -> np.ndarray:
    """Labels: a score above the threshold is positive; the int(negative_fraction * L) labels with the lowest scores of
    an image are negative, also where both apply; the teacher abstains from the rest (Xing et al. 2024, section 3.2).

    scores   (N, L) float in [0, 1]
    returns  (N, L) int8 in {-1, 0, +1}; 0 = the teacher abstains
    """
    labels = (scores > threshold).astype(np.int8)
    if num_negative := int(negative_fraction * scores.shape[1]):
        for start in range(0, len(scores), ROWS):
            lowest = torch.from_numpy(scores[start : start + ROWS]).argsort(dim=1, stable=True)[:, :num_negative]
            np.put_along_axis(labels[start : start + ROWS], lowest.numpy(), -1, axis=1)
    return labels


THRESHOLD_RULE = Rule(
    softmax,
    threshold_labels,
    dict(
        temperature=Setting(0.01, "of the softmax over the teacher's similarities", "(0, inf)", flags=("-t", "--temp")),
        threshold=Setting(0.3, "score above which a label becomes a positive pseudo-label", "(0, 1)", flags=("-th",)),
        negative_fraction=Setting(
            0.0,
            "fraction of an image's labels, those with the lowest scores, that become negative pseudo-labels",
            "[0, 1)",
            flags=("-p", "--partial"),
        ),
    ),
)


def describe(pseudo: np.ndarray, scores: np.ndarray, observed: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How good the pseudo-labels of the training images are.

    pseudo, observed  (N, L) in {-1, 0, +1};  scores  (N, L) float;  true  (N, L) in {0, 1}
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
        "positives per image": counts["positive"] / len(pseudo),
        "observed labels found": share("found", "known"),
        "precision of positives": share("right", "positive"),
        "recall of positives": share("right", "true"),
        "negatives per image": counts["negative"] / len(pseudo),
        "precision of negatives": share("absent", "negative"),
        "mAP of the teacher, %": metrics.mean_average_precision(scores, true),
    }


def table(quality: dict[str, float]) -> str:
    """The rows of `describe` as text; a share of nothing is a dash."""
    lines = [f"  {name:<24} {'-' if value != value else f'{value:8.4f}'.strip():>8}" for name, value in quality.items()]
    return "\n".join(["pseudo-labels of the training images:", *lines])


def warning(pseudo: np.ndarray, similarity: np.ndarray) -> str:
    """One line where the teacher has nothing to say; "" where it has."""
    if not similarity.any():
        return "warning: every similarity is 0; is this the file or the teacher that was meant?"
    if not (pseudo > 0).any():
        return "warning: no label became a positive pseudo-label; lower --threshold or --temperature"
    return ""
