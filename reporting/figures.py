"""Figures for a paper: PDF and PNG at the width of a column, with embedded fonts and colours for the colour-blind."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pseudo_labels import label_quality
from reporting.charts import COLOURS, draw_band, look, shorten
from reporting.compare import ranked
from reporting.tables import Row, by, mean_per_class
from util.files import atomic, writable_folder

WIDTH = 3.25  # inches: a column of the usual two-column styles
STYLE = {"pdf.fonttype": 42, "font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
STYLE |= {"text.parse_math": False, "legend.fontsize": 6.5, "lines.linewidth": 1.2, "savefig.dpi": 300}
MOST = 12  # settings in a figure, the best by validation mAP


def write(rows: list[Row], folder: str | Path) -> list[Path]:
    """Write the figures of each data set; the files."""
    folder, written = writable_folder(Path(folder), "--figures"), []
    for dataset, members in by(rows, lambda row: row.dataset).items():
        here = sorted(ranked(members)[:MOST], key=lambda row: row.number)
        for name, draw in FIGURES.items():
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
                axes = figure.subplots()
                if draw(axes, here):
                    _legend(axes)
                    for kind in ("pdf", "png"):
                        path = folder / f"{dataset}_{name}.{kind}"
                        with atomic(path) as temporary:
                            figure.savefig(temporary, format=kind)
                        written.append(path)
    return written


def _name(row: Row, width: int = 44) -> str:
    return "\n".join(textwrap.wrap(row.line, width, max_lines=2))


def _legend(axes: Axes) -> None:
    """If the axes have lines with names and no legend, one below them, for which the figure becomes higher."""
    names = axes.get_legend_handles_labels()[1]
    if names and not axes.get_legend():
        columns = 2 if max(map(len, names)) < 24 else 1
        axes.figure.set_figheight(2 + 0.14 * sum(name.count("\n") + 1 for name in names) / columns)
        axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def learning_curves(axes: Axes, rows: list[Row]) -> bool:
    """Validation mAP over the epochs: mean and deviation over the runs of each row."""
    drawn = [
        draw_band(axes, [run.history for run in row.runs], "val_mAP", label=_name(row), **look(number))
        for number, row in enumerate(rows)
    ]
    axes.set(xlabel="epoch", ylabel="validation mAP, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return any(drawn)


def test_scores(axes: Axes, rows: list[Row]) -> bool:
    """Test mAP of each row, with its standard deviation."""
    rows = [row for row in rows if len(row.test)]
    names = [_name(row, 28) for row in rows]
    axes.figure.set_figheight(0.8 + 0.2 * sum(name.count("\n") + 1 for name in names))
    means, deviations = [row.test.mean() for row in rows], pd.Series([row.test.std() for row in rows], dtype=float)
    colours = [COLOURS[7] if row.oracle else COLOURS[0] for row in rows]
    axes.barh(range(len(rows)), means, xerr=deviations.fillna(0), color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set(xlabel="test mAP, %", xlim=(0, None))
    return bool(rows)


def class_scores(axes: Axes, rows: list[Row]) -> bool:
    """Test AP per class, one mark for each row; classes by frequency, the 40 most frequent ones."""
    names: list[str] = []
    for number, row in enumerate(row for row in rows if len(row.test)):
        classes = mean_per_class(row)
        names = names or list(classes["test_positives"].sort_values(ascending=False).index[:40])
        scores = classes["test_AP"].reindex(names)
        axes.plot(range(len(names)), scores, ".", color=look(number)["color"], label=_name(row), alpha=0.8)
    axes.figure.set_figwidth(WIDTH if len(names) <= 20 else 2 * WIDTH)
    axes.set_xticks(range(len(names)), map(shorten, names), rotation=90, fontsize=6)
    axes.set(ylabel="test AP, %", ylim=(0, 101))
    return bool(names)


def threshold_curve(axes: Axes, rows: list[Row]) -> bool:
    """Test mAP against the teacher's threshold, for methods whose rows differ in the threshold alone."""
    swept = [
        row for row in rows if len(row.test) and "threshold" in row.shown and row.distinguishing.keys() <= {"threshold"}
    ]
    curves = [members for members in by(swept, lambda row: row.loss).values() if len(members) > 1]
    for number, members in enumerate(curves):
        points = sorted((float(row.shown["threshold"]), row.test.mean(), row.test.std()) for row in members)
        place, middle, spread = pd.DataFrame(points).fillna(0).to_numpy().T
        axes.errorbar(place, middle, spread, label=members[0].loss, capsize=2, **look(number))
    axes.set(xlabel="threshold of the pseudo-labels", ylabel="test mAP, %")
    return bool(curves)


def pseudo_label_quality(axes: Axes, rows: list[Row]) -> bool:
    """Precision, recall and F1 of the pseudo-labels of the first row that has some, over the unobserved entries."""
    for row in rows:
        if quality := row.runs[0].quality:
            entries = "unobserved" if "precision" in quality["unobserved"] else "all"
            label_quality.draw_curves(axes, quality, entries)
            axes.set_title(f"{_name(row)}, {entries} entries")
            axes.get_legend().remove()
            return True
    return False


FIGURES: dict[str, Callable[[Axes, list[Row]], bool]] = {
    "learning_curves": learning_curves,
    "test_mAP": test_scores,
    "per_class": class_scores,
    "threshold": threshold_curve,
    "pseudo_labels": pseudo_label_quality,
}
