"""Metrics of multi-label predictions, from (N, L) arrays. Pure numpy; imports nothing of ours.

probs   (N, L) float, any monotone score of each label
labels  (N, L) in {0, 1}
"""

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


def evaluate(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every figure of test.json that comes from predictions: mAP in percent, the rest as fractions.

    mAP          over all classes, those without positives counting 0, as published
    mAP_present  over the classes that have positives
    """
    precision, present = average_precision(probs, labels), (labels == 1).any(axis=0)
    result = {"mAP": 100 * float(precision.mean())}
    result["mAP_present"] = 100 * float(precision[present].mean()) if present.any() else 0.0
    for k in AT:
        result |= {f"{name}@{k}": value for name, value in at_k(probs, labels, k).items()}
    return result | {"classes_without_positives": int((~present).sum())}


def per_class(probs: np.ndarray, labels: np.ndarray, names: list[str]) -> list[dict]:
    """The rows of per_class.csv: class, positives, and AP in percent."""
    rows = zip(names, (labels == 1).sum(axis=0), average_precision(probs, labels), strict=True)
    return [{"class": name, "test_positives": int(count), "test_AP": 100 * float(ap)} for name, count, ap in rows]


def summary(result: dict) -> str:
    """The test mAP of test.json in words."""
    if "test_mAP" not in result:
        return "no test score: the data set has no test images with full labels"
    text = f"test mAP {result['test_mAP']:.2f}"
    if empty := result["test_classes_without_positives"]:
        present = f"{result['test_mAP_present']:.2f} over the classes with test positives"
        text += f" ({present}; {empty} classes have none and count 0)"
    return text
