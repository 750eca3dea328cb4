"""Metrics of multi-label predictions, from (N, L) arrays. Pure numpy; imports nothing of ours.

probs   (N, L) float, any monotone score of each label
labels  (N, L) in {0, 1}
"""

from collections.abc import Callable

import numpy as np

COLUMNS, ROWS = 16, 4096  # taken at a time: in cache, and without temporaries of (N, L)
AT = (1, 3, 5)  # the k of precision@k, recall@k, top@k, as the published code reports them


def average_precision(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(L,) average precision per class, in [0, 1]: sum over the thresholds of precision x the recall gained.

    Equal scores share one threshold, as in sklearn.metrics.average_precision_score. A class without positives has
    AP 0, as in the published code. Raises ValueError where a score is not a number.
    """
    result = np.zeros(probs.shape[1])
    for start in range(0, probs.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        columns = zip(_columns(probs[:, part]), _columns(labels[:, part] == 1), strict=True)
        for label, (scores, hits) in enumerate(columns, start):
            if not np.isfinite(scores).all():
                raise ValueError("predictions hold values that are not finite")
            order = np.argsort(scores)[::-1]
            scores, hits = scores[order], hits[order]
            positives = np.count_nonzero(hits)
            if positives:
                last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # each run of equal scores' last row
                found = np.cumsum(hits)[last]
                result[label] = np.sum(np.diff(found, prepend=0) * (found / (last + 1))) / positives
    return result


def _columns(array: np.ndarray) -> np.ndarray:
    """The columns as contiguous rows."""
    return np.ascontiguousarray(array.T)


def mean_average_precision(probs: np.ndarray, labels: np.ndarray) -> float:
    """mAP in percent; classes without positives count 0 and stay in the mean."""
    return 100 * float(average_precision(probs, labels).mean())


def at_k(probs: np.ndarray, labels: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall and top at k, as fractions, over the k most probable labels of each image.

    precision@k = hits / k; recall@k = hits / positives, 0 for an image without positives, which stays in the mean;
    top@k = share of images with at least one hit. k is cut to L.
    """
    k = min(k, probs.shape[1])
    hits, positives = np.zeros(len(probs), dtype=np.int64), np.zeros(len(probs), dtype=np.int64)
    for start in range(0, len(probs), ROWS):
        part = slice(start, start + ROWS)
        best = np.argpartition(-probs[part], k - 1, axis=1)[:, :k]
        present = labels[part] == 1
        hits[part] = np.take_along_axis(present, best, axis=1).sum(axis=1)
        positives[part] = present.sum(axis=1)
    return {
        "precision": float(hits.mean() / k),
        "recall": float((hits / np.maximum(positives, 1)).mean()),
        "top": float((hits > 0).mean()),
    }


def f1(probs: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | float) -> dict[str, float]:
    """Micro and macro F1 in [0, 1] of the labels whose probability reaches its threshold, (L,) or one for all.

    micro: of all entries together. macro: the mean over the classes, one without positives counting 0.
    """
    hits, chosen = np.zeros(probs.shape[1]), np.zeros(probs.shape[1])
    for start in range(0, len(probs), ROWS):
        predicted = probs[start : start + ROWS] >= thresholds
        hits += np.count_nonzero(predicted & (labels[start : start + ROWS] == 1), axis=0)
        chosen += np.count_nonzero(predicted, axis=0)
    either = chosen + np.count_nonzero(labels == 1, axis=0)  # F1 = 2 hits / (predicted + positives)
    micro = 2 * hits.sum() / either.sum() if either.any() else 0.0
    return {"micro": float(micro), "macro": float((2 * hits / np.maximum(either, 1)).mean())}


def f1_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(L,) for each class the threshold with the highest F1, halfway between two of its scores; of several the highest.

    A class without positives gets the threshold of all classes taken together.
    """
    return _thresholds(lambda hits, predicted, positives: 2 * hits / (predicted + positives), probs, labels == 1)


RECALL_POWER = (
    3  # of the known positives; Lee & Liu: 2. The best of 1.5, 2, 2.5, 3 on digits and VOC (docs/own_data.md)
)


def known_thresholds(probs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(L,) the same where only some positives are known: the threshold with the highest recall^3 / labels predicted.

    The recall of the known positives estimates the recall r of all, if the known ones are a random part of them. Then
    r^2 / predicted is precision x recall, up to a factor that is the same for all thresholds (Lee & Liu, ICML 2003).

    known  (N, L) bool
    """

    def rule(hits: np.ndarray, predicted: np.ndarray, positives: int) -> np.ndarray:
        return (hits / positives) ** RECALL_POWER / predicted

    return _thresholds(rule, probs, known)


def _thresholds(
    rule: Callable[[np.ndarray, np.ndarray, int], np.ndarray], probs: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """(L,) for each class the threshold with the highest rule(hits, labels predicted, positives); for one without
    positives that of all classes together; 0.5 where none has any."""

    def best(scores: np.ndarray, hits: np.ndarray) -> float:
        order = np.argsort(scores)[::-1]
        scores, hits = scores[order].astype(np.float64), hits[order]
        last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        place = last[np.argmax(rule(np.cumsum(hits)[last], last + 1, np.count_nonzero(hits)))]
        return (scores[place] + scores[min(place + 1, len(scores) - 1)]) / 2

    if not positive.any():
        return np.full(probs.shape[1], 0.5)
    together, columns = best(probs.ravel(), positive.ravel()), zip(_columns(probs), _columns(positive), strict=True)
    return np.array([best(scores, hits) if hits.any() else together for scores, hits in columns])


def evaluate(probs: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | float = 0.5) -> dict[str, float]:
    """Every figure of test.json that comes from predictions: mAP in percent, the rest as fractions.

    mAP          over all classes, those without positives counting 0, as published
    mAP_present  over the classes that have positives
    F1           at 0.5, and at the thresholds (L,) that were chosen on validation
    """
    precision, present = average_precision(probs, labels), (labels == 1).any(axis=0)
    result = {"mAP": 100 * float(precision.mean())}
    result["mAP_present"] = 100 * float(precision[present].mean()) if present.any() else 0.0
    for k in AT:
        result |= {f"{name}@{k}": value for name, value in at_k(probs, labels, k).items()}
    for name, at in (("0.5", 0.5), ("chosen", thresholds)):
        result |= {f"{mean}_F1@{name}": value for mean, value in f1(probs, labels, at).items()}
    return result | {"classes_without_positives": int((~present).sum())}


def per_class(probs: np.ndarray, labels: np.ndarray, names: list[str], thresholds: np.ndarray) -> list[dict]:
    """The rows of per_class.csv: class, positives, AP in percent, and the threshold (L,) that was chosen."""
    figures = (labels == 1).sum(axis=0), 100 * average_precision(probs, labels), thresholds
    columns = (names, *(values.tolist() for values in figures))
    return [
        dict(zip(("class", "test_positives", "test_AP", "threshold"), row, strict=True))
        for row in zip(*columns, strict=True)
    ]


def summary(result: dict) -> str:
    """The test mAP of test.json in words."""
    if "test_mAP" not in result:
        return "no test score: the data set has no test images with full labels"
    text = f"test mAP {result['test_mAP']:.2f}"
    if empty := result["test_classes_without_positives"]:
        present = f"{result['test_mAP_present']:.2f} over the classes with test positives"
        text += f" ({present}; {empty} classes have none and count 0)"
    return text
