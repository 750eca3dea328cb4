"""How good a teacher's scores are as pseudo-labels, at every threshold at once. Pure; imports nothing of ours but util.

Positive pseudo-labels are counted over all entries, and over the unobserved ones, which are the ones that a method
reads. Where the full labels are not known, two figures remain. `observed_found` is the share of observed positives that
are found, an estimate of the recall, since which positive of an image is observed was drawn at random.
`estimated_precision` follows from it: recall x true labels per image / positive pseudo-labels per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROWS = 4096  # images counted at a time: bounds the memory beside the scores
THRESHOLDS = np.array([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, *np.arange(1, 100) / 100])
ENTRIES = ("all", "unobserved")
FIGURES = ("precision", "recall", "f1", "positives_per_image")


@dataclass(frozen=True)
class Counts:
    """For each class and threshold: how many labels score above it.

    thresholds  (T,) float, ascending
    above       {"all", "unobserved"}: (L, T) entries above the threshold
    right       those of them that are true; None where the full labels are not known
    true        {...}: (L,) true labels; None likewise
    found       (L, T) observed positives above the threshold
    observed    (L,) observed positives
    images      N
    """

    thresholds: np.ndarray
    above: dict[str, np.ndarray]
    right: dict[str, np.ndarray] | None
    true: dict[str, np.ndarray] | None
    found: np.ndarray
    observed: np.ndarray
    images: int


def count(
    scores: np.ndarray, observed: np.ndarray, true: np.ndarray | None, thresholds: Sequence[float] = ()
) -> Counts:
    """scores (N, L) float; observed (N, L) in {-1, 0, +1}; true (N, L) in {0, 1}, or None where it is not known.

    thresholds  more of them, beside THRESHOLDS
    """
    grid = np.unique([*THRESHOLDS, *thresholds])
    num_labels, places = scores.shape[1], len(grid) + 1
    names = ["all", "unobserved", "found"] + (["all right", "unobserved right"] if true is not None else [])
    at = {name: np.zeros(num_labels * places, dtype=np.int64) for name in names}
    offsets = np.arange(num_labels) * places
    for start in range(0, len(scores), ROWS):
        part = slice(start, start + ROWS)
        place = np.searchsorted(grid.astype(scores.dtype), scores[part]) + offsets  # thresholds below the score
        unknown, marks = observed[part] == 0, {"found": observed[part] == 1}
        marks |= {"all": np.ones_like(unknown), "unobserved": unknown}
        if true is not None:
            marks |= {"all right": true[part] == 1, "unobserved right": (true[part] == 1) & unknown}
        for name, mark in marks.items():
            at[name] += np.bincount(place[mark], minlength=num_labels * places)

    def above(name: str) -> np.ndarray:
        return at[name].reshape(num_labels, places)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]

    def total(name: str) -> np.ndarray:
        return at[name].reshape(num_labels, places).sum(axis=1)

    known = true is not None
    return Counts(
        grid,
        {entries: above(entries) for entries in ENTRIES},
        {entries: above(f"{entries} right") for entries in ENTRIES} if known else None,
        {entries: total(f"{entries} right") for entries in ENTRIES} if known else None,
        above("found"),
        total("found"),
        len(scores),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN for a share of nothing."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)


def curve(counts: Counts, entries: str, label: int | None = None) -> dict[str, np.ndarray]:
    """(T,) precision, recall, F1 and positives per image against the threshold; of one class, or of all together.

    entries  one of ENTRIES
    """
    chosen = slice(None) if label is None else slice(label, label + 1)
    above = counts.above[entries][chosen].sum(axis=0)
    figures = {"positives_per_image": above / counts.images}
    if counts.right is None:
        return figures
    right, true = counts.right[entries][chosen].sum(axis=0), counts.true[entries][chosen].sum()
    return figures | {
        "precision": _share(right, above),
        "recall": _share(right, true),
        "f1": _share(2 * right, above + true),
    }


def estimate(counts: Counts, positives_per_image: float) -> dict[str, np.ndarray]:
    """(T,) share of the observed positives that are found, and the precision over all entries that follows from it.

    positives_per_image  how many true labels an image has on average; with 1 the precision is a lower bound
    """
    found = _share(counts.found.sum(axis=0), counts.observed.sum())
    above = counts.above["all"].sum(axis=0)
    precision = np.minimum(_share(found * positives_per_image * counts.images, above), 1.0)
    return {"observed_found": found, "estimated_precision": precision}


def as_json(counts: Counts, classes: Sequence[str], threshold: float | None, positives_per_image: float) -> dict:
    """What a run keeps: the curves, and the figures of each class at the threshold that was chosen; NaN is None."""
    result = {"images": counts.images, "threshold": threshold, "thresholds": counts.thresholds.tolist()}
    result["positives_per_image"] = positives_per_image
    for entries in ENTRIES:
        result[entries] = {name: _plain(values) for name, values in curve(counts, entries).items()}
    result["estimate"] = {name: _plain(values) for name, values in estimate(counts, positives_per_image).items()}
    if threshold is not None:
        at = int(np.flatnonzero(counts.thresholds == threshold)[0])
        result["classes"] = [
            {"class": name, "observed": int(counts.observed[label])}
            | {name: _plain(values)[at] for name, values in curve(counts, "all", label).items()}
            for label, name in enumerate(classes)
        ]
    return result


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


STYLES = {"precision": "C0", "recall": "C1", "f1": "C2"}


def draw_curves(axes, about: dict, entries: str) -> None:
    """Draw the curves of `as_json` against the threshold, with the chosen one marked, on matplotlib's axes."""
    thresholds = about["thresholds"]
    lines = {name: about[entries][name] for name in STYLES if name in about[entries]}
    lines = lines or dict(zip(("precision", "recall"), reversed(about["estimate"].values()), strict=True))
    for name, values in lines.items():
        values = [np.nan if value is None else value for value in values]
        label = {"f1": "F1"}.get(name, name) + (" (estimate)" if name not in about[entries] else "")
        axes.plot(thresholds, values, color=STYLES[name], label=label)
        if about["threshold"] is not None:
            at = thresholds.index(about["threshold"])
            axes.plot(thresholds[at], values[at], "o", color=STYLES[name], markersize=5)
    if about["threshold"] is not None:
        axes.axvline(about["threshold"], color="0.6", linestyle=":", label=f"chosen: {about['threshold']:g}")
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02), title=f"{entries} entries")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, framealpha=0)


def draw(path: Path, about: dict, title: str) -> None:
    """A PNG file of the curves over all entries and over the unobserved ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = ENTRIES if "precision" in about["unobserved"] else ("all",)
    for axes, entries in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw_curves(axes, about, entries)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=120)
