"""The paper's idea: a frozen teacher's similarities become labels.

A rule has two steps: similarities -> scores in [0, 1], and scores -> labels. Between them the known labels may
calibrate the scores (calibration.py). label_quality.py measures how good the labels are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pseudo_labels.calibration import calibrate
from util.errors import UserError
from util.settings import Setting, with_settings

ROWS = 4096  # images whose tiles are read at a time


@dataclass(frozen=True)
class Rule:
    """How similarities become pseudo-labels.

    score     (similarity (N, L) float, *, settings by name) -> (N, L) float in [0, 1]; of a rule of tiles: (whole
              (N, L), tiles (N, K, L), observed (N, L), *, settings by name) -> scores (N, L), ranking (N, L)
    label     (scores (N, L) float, [ranking,] *, settings by name) -> (N, L) int8 in {-1, 0, +1}, or float in [0, 1]
    settings  of both functions, by name
    """

    score: Callable[..., np.ndarray | tuple[np.ndarray, np.ndarray]]
    label: Callable[..., np.ndarray]
    settings: dict[str, Setting]
    of_tiles: bool = False

    def threshold(self, settings: dict[str, object]) -> float | None:
        """The score above which every label is positive; None if no single threshold decides."""
        return settings["threshold"] if self.label is threshold_labels else None


def softmax(similarity, *, temperature):
    """Scores: softmax(similarity / temperature) over the labels of each image (Xing et al. 2024, section 3.2).

    similarity  (N, L) float, cosine of image and class text; or (N, K, L) of tiles
    returns     the same shape, float in [0, 1], each row adds up to 1
    """
    rows = torch.from_numpy(similarity.astype(np.promote_types(similarity.dtype, np.float32)))
    return torch.softmax(rows / temperature, dim=-1).numpy()


def threshold_labels(scores, ranking=None, *, threshold, negative_fraction):
    """Labels: a score above the threshold is positive; the int(negative_fraction * L) lowest labels of an image are
    negative, even above the threshold; the teacher abstains from the rest (Xing et al. 2024, section 3.2).

    scores   (N, L) float in [0, 1];  ranking  (N, L) float, by which labels are the lowest; None: the scores
    """
    labels = (scores > threshold).astype(np.int8)
    if num_negative := int(negative_fraction * scores.shape[1]):
        ranking = torch.from_numpy(scores if ranking is None else ranking)
        np.put_along_axis(labels, ranking.argsort(dim=1, stable=True)[:, :num_negative].numpy(), -1, axis=1)
    return labels


def damp(whole, tiles, observed, *, temperature, eta):
    """Scores of an image and its tiles, AEVLP's DAMP, and the ranking by which it chooses negatives (Tran et al. 2025).

    A label's tile score is the largest of its softmax scores over the tiles if that exceeds a bound, else the smallest.
    The bound is min(eta, the whole image's score of the known label), 0 if none is known; of several known labels the
    lowest score counts. DAMP is the mean of tile score and whole image's score; in the ranking, the tiles' mean score
    replaces the tile score.

    whole     (N, L) float, cosine of image and class text;  tiles  (N, K, L) float, the same of its K tiles
    observed  (N, L) in {-1, 0, +1}
    """
    image, each, known = softmax(whole, temperature=temperature), softmax(tiles, temperature=temperature), observed == 1
    largest, smallest = each.max(axis=1), each.min(axis=1)
    bound = np.where(known, image, eta).min(axis=1, initial=eta) * known.any(axis=1)
    tile = np.where(largest > bound[:, None], largest, smallest)
    return (image + tile) / 2, (image + each.mean(axis=1)) / 2


def topk_labels(scores, ranking=None, *, teacher_topk, threshold, negative_fraction):
    """Labels: a score is positive if it is among the teacher_topk highest of its image and at least the threshold;
    negative as in `threshold_labels` (Tran et al., ICCV 2025)."""
    labels = threshold_labels(scores, ranking, threshold=np.inf, negative_fraction=negative_fraction)
    highest = torch.from_numpy(scores).argsort(dim=1, descending=True, stable=True)[:, :teacher_topk].numpy()
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, highest, True, axis=1)
    labels[chosen & (scores >= threshold) & (labels == 0)] = 1
    return labels


def soft_labels(scores):
    """Labels: the scores themselves, (N, L) float in [0, 1]."""
    return scores


def _slices(rows: np.ndarray) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)]


SOFTMAX = (0.01, "of the softmax over the teacher's similarities", "[1e-6, inf)", "[0.003, 0.1]")
FRACTION = "fraction of an image's labels, those with the lowest scores, that become negative pseudo-labels"
ABOVE = "score above which a label becomes a positive pseudo-label"
FROM = "score from which a label becomes a positive pseudo-label"
ETA = "score above which the largest tile score replaces the smallest"
TEMPERATURE = Setting(*SOFTMAX, flags=("-t", "--temp"))
THRESHOLD = Setting(0.3, ABOVE, "(0, 1)", "[0.05, 0.9]", flags=("-th",))
NEGATIVES = Setting(0.0, FRACTION, "[0, 1)", (0.0, 0.1, 0.2, 0.3, 0.4), flags=("-p", "--partial"))

SOFT_RULE = Rule(softmax, soft_labels, dict(temperature=TEMPERATURE))
THRESHOLD_RULE = Rule(
    softmax, threshold_labels, dict(temperature=TEMPERATURE, threshold=THRESHOLD, negative_fraction=NEGATIVES)
)
DAMP_RULE = Rule(
    damp,
    topk_labels,
    dict(
        temperature=Setting(*SOFTMAX, flags=("-t", "--temp"), cub=0.1),
        eta=Setting(0.0, ETA, "[0, 1)", coco=0.3, nuswide=0.3, cub=0.005),
        teacher_topk=Setting(3, "positive pseudo-labels an image may have", "[1, inf)", (1, 2, 3, 5), cub=32),
        threshold=Setting(0.5, FROM, "(0, 1)", "[0.05, 0.9]", flags=("-th",), nuswide=0.6, cub=0.005),
        negative_fraction=NEGATIVES,  # differs: the paper has 0.3 on COCO, but its code lets none reach the loss
    ),
    of_tiles=True,
)


def make(
    rule: Rule,
    settings: dict[str, object],
    views: list[np.ndarray],
    observed: np.ndarray,
    *,
    calibration: str = "none",
    pool: str = "max",
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pseudo-labels (N, L) by a rule, the scores (N, L) that they are made of, and messages to print.

    settings     of the rule, by name
    views        the teacher's similarities, each (N, L), or (N, K, L) of an image's K tiles; without calibration the
                 mean of the pooled views is scored
    observed     (N, L) in {-1, 0, +1}; read by the calibration and by rules of tiles
    calibration  one of calibration.CALIBRATIONS: whether the rule's scores, or calibrated ones, are labelled
    pool         how the tiles of an image become one: max or mean
    Raises UserError if the scores of single tiles are needed, and only their maximum is known.
    """
    from_tiles = rule.of_tiles and calibration == "none"
    if (from_tiles or pool == "mean") and any(view.ndim == 3 and view.shape[1] == 1 for view in views):
        raise UserError(
            "the file of --similarity holds the maximum over tiles alone; an array `tiles` (N, K, L) is needed"
        )
    score, label, notes = with_settings(rule.score, settings), with_settings(rule.label, settings), []
    if from_tiles:
        whole, tiles = views
        scores, ranking = np.empty((2, *whole.shape), np.promote_types(whole.dtype, np.float32))
        for rows in _slices(whole):
            scores[rows], ranking[rows] = score(whole[rows], tiles[rows], observed[rows])
        return label(scores, ranking), scores, notes
    if calibration != "none":
        scores, notes = calibrate(pooled(views, pool), observed, form=calibration, temperature=settings["temperature"])
    else:
        scores = score(views[0] if len(views) == 1 else np.mean(pooled(views, pool), axis=0))
    return label(scores), scores, notes


def pooled(views: list[np.ndarray], pool: str) -> list[np.ndarray]:
    """The views, each (N, L): of tiles (N, K, L) the max or mean over K, less each tile's own mean over the labels."""

    def one(tiles: np.ndarray) -> np.ndarray:
        return getattr(tiles - tiles.mean(axis=2, keepdims=True), pool)(axis=1)

    return [view if view.ndim == 2 else np.concatenate([one(view[rows]) for rows in _slices(view)]) for view in views]


def warnings(views: list[np.ndarray], observed: np.ndarray) -> list[str]:
    """A line if the teacher's similarities rank the observed positives no better than chance.

    A positive's rank, the fraction of the image's classes that score below it, is compared with the mean rank of its
    class over all images, because teachers prefer some classes.
    """
    ranks = views[0].argsort(axis=1, kind="stable").argsort(axis=1) / observed.shape[1]
    gain = (ranks - ranks.mean(axis=0))[observed == 1]
    if not len(gain) or gain.mean() > 2 * gain.std() / len(gain) ** 0.5 + 1e-9:
        return []
    return [
        "warning: the observed labels rank no better than chance in the teacher's similarities; check that they belong "
        "to these images and classes"
    ]
