"""Figures for a paper: PDF and PNG at the width of a column, with embedded fonts and colours for the colour-blind."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pseudo_labels import label_quality
from reporting.charts import COLOURS, draw_band, look, shorten
from reporting.runs import read_history, read_per_class
from reporting.tables import Row, mean, natural
from util.files import atomic, writable_folder

WIDTH = 3.25  # inches: a column of the usual two-column styles
STYLE = {"pdf.fonttype": 42, "font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
STYLE |= {"text.parse_math": False, "legend.fontsize": 6.5, "lines.linewidth": 1.2, "savefig.dpi": 300}
MOST = 12  # settings in a figure, the best by validation mAP


def write(rows: list[Row], folder: str | Path) -> list[Path]:
    """Write the figures of each data set; the files."""
    folder, written = writable_folder(Path(folder), "--figures"), []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        ranked = sorted(here, key=lambda row: -mean(row.val.values()) if row.val else np.inf)[:MOST]
        here = [row for row in here if row in ranked]
        for name, draw in FIGURES.items():
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
                if draw(figure, here):
                    for kind in ("pdf", "png"):
                        path = folder / f"{dataset}_{name}.{kind}"
                        with atomic(path) as temporary:
                            figure.savefig(temporary, format=kind)
                        written.append(path)
    return written


def _legend(axes: Axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False)


def learning_curves(figure: Figure, rows: list[Row]) -> bool:
    """Validation mAP over the epochs: mean and deviation over the runs of each row."""
    axes, drawn = figure.subplots(), False
    for number, row in enumerate(rows):
        histories = [history for run in row.runs if len(history := read_history(run.folder))]
        if any(history["val_mAP"].notna().any() for history in histories):
            draw_band(axes, histories, "val_mAP", label=row.line, **look(number))
            drawn = True
    axes.set(xlabel="epoch", ylabel="validation mAP, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return drawn


def test_scores(figure: Figure, rows: list[Row]) -> bool:
    """Test mAP of each row, with its deviation."""
    rows = [row for row in rows if row.test]
    figure.set_figheight(0.8 + 0.18 * len(rows))
    axes = figure.subplots()
    scores = [list(row.test.values()) for row in rows]
    errors = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in scores]
    colours = [COLOURS[7] if row.oracle else COLOURS[0] for row in rows]
    axes.barh(range(len(rows)), [np.mean(values) for values in scores], xerr=errors, color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), [row.line for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="test mAP, %, mean and standard deviation")
    if scores:
        axes.set_xlim(left=max(0.0, min(map(min, scores)) - 10))
    return bool(rows)


def class_scores(figure: Figure, rows: list[Row]) -> bool:
    """Test AP per class, one mark for each row; classes by frequency."""
    rows = [row for row in rows if row.test]
    if not rows:
        return False
    positives = read_per_class(rows[0].runs[0].folder)["test_positives"].sort_values(ascending=False)
    names = list(positives.index[:40])
    figure.set_size_inches(WIDTH if len(names) <= 20 else 2 * WIDTH, 2.8)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        tables = pd.concat([read_per_class(run.folder)["test_AP"] for run in row.runs], axis=1).mean(axis=1)
        marks = tables.reindex(names)
        axes.plot(range(len(names)), marks, ".", color=look(number)["color"], label=row.line, alpha=0.8)
    axes.set_xticks(range(len(names)), map(shorten, names), rotation=90, fontsize=6)
    axes.set(ylabel="test AP, %", ylim=(0, 101))
    _legend(axes)
    return True


def threshold_curve(figure: Figure, rows: list[Row]) -> bool:
    """Test mAP against the teacher's threshold, for methods with runs of several thresholds."""
    axes, drawn = figure.subplots(), 0
    for loss in dict.fromkeys(row.loss for row in rows):
        points = sorted(
            (natural(row.distinguishing["threshold"]), row.test)
            for row in rows
            if row.loss == loss and row.test and set(row.distinguishing) == {"threshold"}
        )
        if len(points) > 1:
            values = [list(test.values()) for _, test in points]
            errors = [np.std(scores, ddof=1) if len(scores) > 1 else 0.0 for scores in values]
            places = [place[0] for place, _ in points]
            axes.errorbar(places, [np.mean(scores) for scores in values], errors, label=loss, capsize=2, **look(drawn))
            drawn += 1
    axes.set(xlabel="threshold of the pseudo-labels", ylabel="test mAP, %")
    _legend(axes)
    return drawn > 0


def pseudo_label_quality(figure: Figure, rows: list[Row]) -> bool:
    """Precision, recall and F1 of the pseudo-labels of the first row that has some, over the unobserved entries."""
    for row in rows:
        path = row.runs[0].folder / "pseudo_labels.json"
        if path.exists():
            quality = json.loads(path.read_text())
            entries = "unobserved" if "precision" in quality["unobserved"] else "all"
            label_quality.draw_curves(figure.subplots(), quality, entries)
            return True
    return False


FIGURES: dict[str, Callable[[Figure, list[Row]], bool]] = {
    "learning_curves": learning_curves,
    "test_mAP": test_scores,
    "per_class": class_scores,
    "threshold": threshold_curve,
    "pseudo_labels": pseudo_label_quality,
}
