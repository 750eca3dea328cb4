"""How good pseudo-labels are, without training: those that a rule makes (`describe`), and at every threshold (`count`).

Methods read the pseudo-labels of unobserved entries only, so these entries are also counted alone. If the full labels
are not known, the observed ones estimate precision and recall (`estimate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics

THRESHOLDS = np.array([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, *np.arange(1, 100) / 100])
ENTRIES = ("all", "unobserved")
STYLES = {"precision": "C0", "recall": "C1", "f1": "C2"}


def describe(
    pseudo: np.ndarray, scores: np.ndarray, observed: np.ndarray, true: np.ndarray | None
) -> dict[str, float | None]:
    """The quality of the pseudo-labels of the training images: the rows of the table printed before training.

    pseudo    (N, L) in {-1, 0, +1}; or soft labels, float in [0, 1], which are judged by their order
    scores    (N, L) float;  observed  (N, L) in {-1, 0, +1};  true  (N, L) in {0, 1}, or None if it is not known
    returns   None for unknown values, and for shares of an empty set
    """
    unknown, known, present = observed == 0, observed == 1, None if true is None else true == 1
    teacher = {"mAP of the teacher, %": None if true is None else metrics.mean_average_precision(scores, true)}
    if pseudo.dtype.kind == "f":
        found = {} if true is None else metrics.ranking(scores[unknown], present[unknown])
        return {f"{name}, unobserved entries": value for name, value in found.items()} | teacher
    positive, negative = pseudo == 1, pseudo == -1

    def share(whole: np.ndarray, part: np.ndarray | None) -> float | None:
        return None if part is None or not whole.any() else float((whole & part).sum() / whole.sum())

    return {
        "positives per image": float(positive.sum() / len(pseudo)),
        "observed labels found": share(known, positive),
        "precision of positives": share(positive, present),
        "recall of positives": None if true is None else share(present, positive),
        "precision of positives, unobserved entries": share(positive & unknown, present),
        "recall of positives, unobserved entries": None if true is None else share(present & unknown, positive),
        "negatives per image": float(negative.sum() / len(pseudo)) or None,
        "precision of negatives": share(negative, None if true is None else ~present),
    } | teacher


def table(quality: dict[str, float | None]) -> str:
    """The rows of `describe` that are known, as text. If no label is positive, a sentence replaces the rows of
    positives, which would be zeros."""
    lines = []
    if quality.get("positives per image") == 0:
        lines = ["  warning: no label became a positive pseudo-label; lower --threshold or --temperature"]
        quality = {name: value for name, value in quality.items() if value != 0}
    lines += [f"  {name:<42} {value:8.4f}" for name, value in quality.items() if value is not None]
    if quality["mAP of the teacher, %"] is None:
        lines.append("  precision, recall and mAP need the full labels of the training images, which are not known")
    return "\n".join(["pseudo-labels of the training images:", *lines])


@dataclass(frozen=True)
class Counts:
    """Numbers of entries of each class by kind, (L, T + 1): column 0 counts all, column t + 1 those that score above
    thresholds[t]. "observed" counts positives; "all true" and "unobserved true" are there if the full labels are known.
    """

    thresholds: np.ndarray  # (T,) float, ascending
    entries: dict[str, np.ndarray]
    images: int


def count(
    scores: np.ndarray, observed: np.ndarray, true: np.ndarray | None, thresholds: Sequence[float] = ()
) -> Counts:
    """scores (N, L) float; observed (N, L) in {-1, 0, +1}; true (N, L) in {0, 1}, or None if it is not known.

    thresholds  further ones, beside THRESHOLDS
    """
    grid = np.unique([*THRESHOLDS, *thresholds])
    below = np.searchsorted(grid.astype(scores.dtype), scores)  # (N, L) how many thresholds are below the score
    masks = {"all": np.ones(observed.shape, bool), "unobserved": observed == 0, "observed": observed == 1}
    if true is not None:
        masks |= {f"{name} true": masks[name] & (true == 1) for name in ENTRIES}

    def above(mask: np.ndarray) -> np.ndarray:
        columns = zip(below.T, mask.T, strict=True)
        numbers = [np.bincount(column[chosen], minlength=len(grid) + 1) for column, chosen in columns]
        return np.cumsum(np.stack(numbers)[:, ::-1], axis=1)[:, ::-1]

    return Counts(grid, {name: above(mask) for name, mask in masks.items()}, len(scores))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN for a share of nothing."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=np.asarray(whole) > 0)


def curve(counts: Counts, entries: str, label: int | None = None) -> dict[str, np.ndarray]:
    """(T,) precision, recall, F1 and positives per image against the threshold, of one class or of all together.

    entries  one of ENTRIES
    """
    sums = {name: part.sum(axis=0) if label is None else part[label] for name, part in counts.entries.items()}
    above, right = sums[entries][1:], sums.get(f"{entries} true")
    figures = {"positives_per_image": above / counts.images}
    if right is None:
        return figures
    shares = {"precision": above, "recall": np.full_like(above, right[0]), "f1": (above + right[0]) / 2}
    return {name: _share(right[1:], whole) for name, whole in shares.items()} | figures


def estimate(counts: Counts, positives_per_image: float) -> dict[str, np.ndarray]:
    """(T,) share of the observed positives that score above the threshold, which estimates the recall because they were
    drawn at random, and the precision that follows: recall x true labels per image / positive pseudo-labels per image.

    positives_per_image  mean number of true labels of an image; with 1 the precision is a lower bound
    """
    observed, above = (counts.entries[name].sum(axis=0) for name in ("observed", "all"))
    found = _share(observed[1:], observed[0])
    precision = np.minimum(_share(found * positives_per_image * counts.images, above[1:]), 1.0)
    return {"observed_found": found, "estimated_precision": precision}


def as_json(counts: Counts, classes: Sequence[str], threshold: float | None, positives_per_image: float) -> dict:
    """Content of a run's pseudo_labels.json: the curves, and the figures of each class at the chosen threshold; NaN is
    None."""
    result = {"images": counts.images, "threshold": threshold, "thresholds": counts.thresholds.tolist()}
    result["positives_per_image"] = positives_per_image
    for entries in ENTRIES:
        result[entries] = {name: _plain(values) for name, values in curve(counts, entries).items()}
    result["estimate"] = {name: _plain(values) for name, values in estimate(counts, positives_per_image).items()}
    if threshold is not None:
        at = counts.thresholds.tolist().index(threshold)
        result["classes"] = [
            {"class": name, "observed": int(counts.entries["observed"][label, 0])}
            | {name: _plain(values)[at] for name, values in curve(counts, "all", label).items()}
            for label, name in enumerate(classes)
        ]
    return result


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def draw_curves(axes, quality: dict, entries: str) -> None:
    """Draw the curves of `as_json` against the threshold, with the chosen one marked, on matplotlib's axes."""
    thresholds, chosen = quality["thresholds"], quality["threshold"]
    lines = {name: quality[entries][name] for name in STYLES if name in quality[entries]}
    lines = lines or dict(zip(("precision", "recall"), reversed(quality["estimate"].values()), strict=True))
    for name, values in lines.items():
        label = {"f1": "F1"}.get(name, name) + (" (estimate)" if name not in quality[entries] else "")
        mark = {} if chosen is None else dict(marker="o", markersize=5, markevery=[thresholds.index(chosen)])
        axes.plot(thresholds, np.array(values, float), color=STYLES[name], label=label, **mark)
    if chosen is not None:
        axes.axvline(chosen, color="0.6", linestyle=":", label=f"chosen: {chosen:g}")
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02), title=f"{entries} entries")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, framealpha=0)


def draw(path: Path, quality: dict, title: str) -> None:
    """A PNG file of the curves over all entries and over the unobserved ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = ENTRIES if "precision" in quality["unobserved"] else ("all",)
    for axes, entries in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw_curves(axes, quality, entries)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=120)
