"""Metrics of multi-label predictions, from (N, L) arrays. Pure numpy.

probs   (N, L) float, any monotone score of each label
labels  (N, L) in {0, 1}
"""

import numpy as np

AT = (1, 3, 5)  # the k of precision@k, recall@k, top@k, as the published code reports them
RECALL_POWER = 3  # Lee & Liu: 2. The best of 1.5, 2, 2.5, 3 on digits and VOC (docs/own_data.md)
FEW = 10  # a class with fewer positives shares a threshold with others


def _ranked(scores: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different scores (K,), the highest first; and how many hits (K,) and labels (K,) reach each."""
    order = np.argsort(scores)[::-1]
    scores, hits = scores[order], hits[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    return scores[last], np.cumsum(hits)[last], last + 1


def average_precision(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(L,) average precision per class, in [0, 1]: sum over the thresholds of precision x the recall gained.

    Equal scores share one threshold, as in scikit-learn (whose import alone takes a second). A class without positives
    has AP 0, as in the published code.
    """
    result = np.zeros(probs.shape[1])
    for label, (scores, hits) in enumerate(zip(probs.T, labels.T == 1, strict=True)):
        if positives := np.count_nonzero(hits):
            _, found, chosen = _ranked(scores, hits)
            result[label] = np.sum(np.diff(found, prepend=0) * (found / chosen)) / positives
    return result


def ranking(scores: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """Of entries (M,) ranked together, in [0, 1]: the recall at precision 0.8, and the best F1 of any threshold."""
    _, found, chosen = _ranked(scores, hits)
    positives = max(int(found[-1]), 1)
    recall = found[found >= 0.8 * chosen].max(initial=0) / positives
    return {"recall at precision 0.8": float(recall), "best F1": float((2 * found / (chosen + positives)).max())}


def mean_average_precision(probs: np.ndarray, labels: np.ndarray) -> float:
    """mAP in percent; classes without positives count 0 and stay in the mean."""
    return 100 * float(average_precision(probs, labels).mean())


def at_k(probs: np.ndarray, labels: np.ndarray, k: int) -> dict[str, float]:
    """As fractions, over the k (at most L) most probable labels of each image: precision = hits / k; recall = hits /
    positives, 0 for an image without positives, which stays in the mean; top = share of images with a hit."""
    k = min(k, probs.shape[1])
    best = np.argpartition(-probs, k - 1, axis=1)[:, :k]
    hits, positives = (np.take_along_axis(labels, best, axis=1) == 1).sum(axis=1), (labels == 1).sum(axis=1)
    recall = hits / np.maximum(positives, 1)
    return {"precision": float(hits.mean() / k), "recall": float(recall.mean()), "top": float((hits > 0).mean())}


def f1(probs: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | float) -> dict[str, float]:
    """F1 in [0, 1] of the labels whose probability reaches its threshold, (L,) or one for all. micro: over all entries;
    macro: the mean over the classes, of which one without positives counts 0."""
    predicted = probs >= thresholds
    hits = (predicted & (labels == 1)).sum(axis=0)
    either = predicted.sum(axis=0) + (labels == 1).sum(axis=0)  # F1 = 2 hits / (predicted + positives)
    micro = 2 * hits.sum() / max(either.sum(), 1)
    return {"micro": float(micro), "macro": float((2 * hits / np.maximum(either, 1)).mean())}


def choose_thresholds(probs: np.ndarray, positive: np.ndarray, *, complete: bool) -> tuple[np.ndarray, str]:
    """(L,) probabilities from which on a label counts as present, halfway between two scores; and by what, in words.

    If the labels are complete, each class takes the threshold with the highest F1, of several the highest. Else only
    some positives are known. If they are a random part of all, their recall r estimates the recall of all, and
    r^2 / labels predicted is precision x recall, up to a factor that all thresholds share (Lee & Liu, ICML 2003). Here
    it is r^3. Classes with fewer than FEW positives share the threshold of all classes taken together; with fewer than
    FEW in all it is 0.5.

    positive  (N, L) bool
    """

    def best(scores: np.ndarray, hits: np.ndarray) -> float:
        scores, found, chosen = _ranked(scores.astype(np.float64), hits)
        recall, f1 = found / found[-1], 2 * found / (chosen + found[-1])
        place = int(np.argmax(f1 if complete else recall**RECALL_POWER / chosen))
        return (scores[place] + scores[min(place + 1, len(scores) - 1)]) / 2

    counts = np.count_nonzero(positive, axis=0)
    total, own = int(counts.sum()), np.flatnonzero(counts >= FEW)
    if total < FEW:
        return np.full(len(counts), 0.5), f"nothing: 0.5, because {total} positives are too few"
    thresholds = np.full(len(counts), best(probs.ravel(), positive.ravel()))
    thresholds[own] = [best(probs[:, label], positive[:, label]) for label in own]
    rule = "F1 on clean" if complete else f"recall^{RECALL_POWER} / labels predicted on observed"
    pooled = f"; {len(counts) - len(own)} of {len(counts)} classes have fewer than {FEW} and share one"
    return thresholds, f"{rule} validation labels, {total:,} positives{pooled if len(own) < len(counts) else ''}"


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
    rows = zip(names, *(values.tolist() for values in figures), strict=True)
    return [dict(zip(("class", "test_positives", "test_AP", "threshold"), row, strict=True)) for row in rows]


def summary(result: dict) -> str:
    """The test mAP of test.json in words."""
    if "test_mAP" not in result:
        return "no test score: the data set has no test images with full labels"
    text = f"test mAP {result['test_mAP']:.2f}"
    if empty := result["test_classes_without_positives"]:
        present = f"{result['test_mAP_present']:.2f} over the classes with test positives"
        text += f" ({present}; {empty} classes have none and count 0)"
    return text
