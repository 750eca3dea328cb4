"""Figures for a paper: PDF and PNG at the width of a column, with embedded fonts and colours for the colour-blind."""

import json
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
from reporting.runs import read_history, read_per_class
from reporting.tables import Row, by, natural
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
                if draw(figure, here):
                    for kind in ("pdf", "png"):
                        path = folder / f"{dataset}_{name}.{kind}"
                        with atomic(path) as temporary:
                            figure.savefig(temporary, format=kind)
                        written.append(path)
    return written


def _name(row: Row) -> str:
    return "\n".join(textwrap.wrap(row.line, 34, max_lines=2, placeholder=" …"))


def _legend(axes: Axes) -> None:
    """A legend below the axes, for which the figure becomes higher."""
    names = axes.get_legend_handles_labels()[1]
    columns = 2 if max(map(len, names)) < 24 else 1
    axes.figure.set_figheight(2 + 0.14 * sum(name.count("\n") + 1 for name in names) / columns)
    axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def learning_curves(figure: Figure, rows: list[Row]) -> bool:
    """Validation mAP over the epochs: mean and deviation over the runs of each row."""
    axes = figure.subplots()
    drawn = [
        draw_band(axes, [read_history(run.folder) for run in row.runs], "val_mAP", label=_name(row), **look(number))
        for number, row in enumerate(rows)
    ]
    axes.set(xlabel="epoch", ylabel="validation mAP, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if any(drawn):
        _legend(axes)
    return any(drawn)


def test_scores(figure: Figure, rows: list[Row]) -> bool:
    """Test mAP of each row, with its standard deviation."""
    rows = [row for row in rows if len(row.test)]
    if not rows:
        return False
    figure.set_figheight(0.8 + 0.2 * sum(_name(row).count("\n") + 1 for row in rows))
    axes = figure.subplots()
    scores = pd.DataFrame([(row.test.mean(), row.test.std(), row.test.min()) for row in rows])
    colours = [COLOURS[7] if row.oracle else COLOURS[0] for row in rows]
    axes.barh(range(len(rows)), scores[0], xerr=scores[1].fillna(0), color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), map(_name, rows))
    axes.invert_yaxis()
    axes.set(xlabel="test mAP, %", xlim=(max(0, scores[2].min() - 10), None))
    return True


def class_scores(figure: Figure, rows: list[Row]) -> bool:
    """Test AP per class, one mark for each row; classes by frequency."""
    rows = [row for row in rows if len(row.test)]
    if not rows:
        return False
    positives = read_per_class(rows[0].runs[0].folder)["test_positives"].sort_values(ascending=False)
    names = list(positives.index[:40])
    figure.set_figwidth(WIDTH if len(names) <= 20 else 2 * WIDTH)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        scores = pd.concat([read_per_class(run.folder)["test_AP"] for run in row.runs], axis=1).mean(axis=1)
        axes.plot(
            range(len(names)), scores.reindex(names), ".", color=look(number)["color"], label=_name(row), alpha=0.8
        )
    axes.set_xticks(range(len(names)), map(shorten, names), rotation=90, fontsize=6)
    axes.set(ylabel="test AP, %", ylim=(0, 101))
    _legend(axes)
    return True


def threshold_curve(figure: Figure, rows: list[Row]) -> bool:
    """Test mAP against the teacher's threshold, for methods whose rows differ in the threshold alone."""
    swept = [row for row in rows if len(row.test) and set(row.distinguishing) == {"threshold"}]
    axes, curves = figure.subplots(), [m for m in by(swept, lambda row: row.loss).values() if len(m) > 1]
    for number, members in enumerate(curves):
        points = sorted((natural(row.shown["threshold"])[0], row.test.mean(), row.test.std()) for row in members)
        place, middle, spread = pd.DataFrame(points).fillna(0).to_numpy().T
        axes.errorbar(place, middle, spread, label=members[0].loss, capsize=2, **look(number))
    axes.set(xlabel="threshold of the pseudo-labels", ylabel="test mAP, %")
    if curves:
        _legend(axes)
    return bool(curves)


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
