"""Drawings by matplotlib: the page's charts as SVG, and figures for a paper as PDF and PNG.

A function that draws takes the axes first. A chart of the page returns its description, "" if there is nothing to show.
A figure for a paper returns whether there is something to show.
"""

import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pseudo_labels import label_quality
from reporting.compare import ranked
from reporting.tables import Row, by, mean_per_class
from util.files import atomic, writable_folder

INK = "#010203"  # stands for the page's text colour, so that charts suit light and dark
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8b5cf6", "#a16207")  # Okabe and Ito's
LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # of rows that share a colour: SVG, CSS
BOTH = {"axes.grid": True, "axes.axisbelow": True, "text.parse_math": False}  # a class may be called a$b$
PAGE = BOTH | {"svg.fonttype": "none", "svg.hashsalt": "page", "font.size": 8.5, "axes.titlesize": 9.5}
PAGE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}
PAGE |= {"grid.alpha": 0.15, "grid.color": INK, "legend.frameon": False, "text.color": INK}
PAGE |= {"axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
PAPER = BOTH | {"pdf.fonttype": 42, "font.size": 8, "grid.alpha": 0.3}
PAPER |= {"legend.fontsize": 6.5, "lines.linewidth": 1.2, "savefig.dpi": 300}
MOST_BARS = 40  # classes in a bar chart; of more, those at both ends
WIDTH = 3.25  # inches: a column of the usual two-column styles
MOST_ROWS = 12  # settings in a figure, the best by validation mAP


def look(row: int) -> dict[str, str]:
    """Colour and dashes of a row of the table; the first 32 rows differ."""
    return {"color": COLOURS[row % len(COLOURS)], "linestyle": list(LINES)[row // len(COLOURS) % len(LINES)]}


def swatch(row: int) -> Markup:
    """A short line with the row's colour and dashes, beside its name."""
    color, line = look(row).values()
    return Markup(f'<span class="swatch" style="border-top:3px {LINES[line]} {color}"></span>')


def shorten(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def draw_band(axes: Axes, row: Row, name: str, gid: str = "", **options: object) -> bool:
    """Mean of a column of a row's histories over the epochs, with a band of one deviation; False if it is empty."""
    table = pd.concat([run.history.set_index("epoch")[name] for run in row.runs], axis=1).dropna(how="all")
    middle, spread = table.mean(axis=1), table.std(axis=1).fillna(0)
    if len(table):
        marker = "o" if len(table) < 3 else None
        axes.plot(middle.index, middle, linewidth=1.3, marker=marker, markersize=3, gid=gid, **options)
        band = (middle.index, middle - spread, middle + spread)
        axes.fill_between(*band, color=options["color"], alpha=0.15, lw=0, gid=f"{gid}-band")
    return len(table) > 0


# Charts of the page


def svg(draw: Callable[..., str], *arguments: object) -> Markup:
    """SVG of the axes that `draw` fills; the page sets its width."""
    buffer, metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Type", "Format"))
    with matplotlib.rc_context(PAGE):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        description = draw(figure.subplots(), *arguments)
        if not description:
            return Markup()
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    head, rest = text[text.index("<svg") :].replace(INK, "currentColor").split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return Markup(head) + Markup(' role="img" aria-label="{}">').format(description) + Markup(rest)


def curves(axes: Axes, rows: list[Row], name: str, title: str) -> str:
    """Mean and deviation of train_loss or val_mAP of each row over its runs; a line's id is NAME-NUMBER."""
    drawn = [draw_band(axes, row, name, gid=f"{name}-{row.number}", **look(row.number)) for row in rows]
    axes.set(xlabel="epoch", title=title)
    if name == "val_mAP":
        axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return f"{title} of {len(rows)} settings" if any(drawn) else ""


def bars(axes: Axes, values: pd.Series, title: str, xlabel: str) -> str:
    """Horizontal bars, in the order of the series from the top; of many those at both ends."""
    if len(values) > MOST_BARS:
        values = pd.concat([values[: MOST_BARS // 2], values[-MOST_BARS // 2 :]])
    axes.figure.set_figheight(max(2.2, 0.9 + 0.19 * len(values)))
    axes.barh(range(len(values)), values, color=np.where(values >= 0, COLOURS[2], COLOURS[3]))
    axes.set_yticks(range(len(values)), map(shorten, values.index), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(xlabel=xlabel, title=title)
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.01)
    return f"{xlabel}: {title}"


def trials(axes: Axes, values: pd.Series, title: str) -> str:
    """A point for each trial, its validation mAP against its number, and a line for the best so far."""
    axes.scatter(values.index, values, s=18, color=COLOURS[0], alpha=0.8, linewidths=0, label="trial")
    axes.plot(values.index, values.cummax(), color=COLOURS[3], linewidth=1.3, drawstyle="steps-post", label="best")
    axes.set(xlabel="trial; the first has the default settings", ylabel="validation mAP, %", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)
    return f"validation mAP of {len(values)} trials"


def against_frequency(axes: Axes, positives: pd.Series, differences: pd.Series, title: str) -> str:
    """A point for each class: difference of AP against the number of its test positives."""
    axes.scatter(positives, differences, s=18, color=COLOURS[0], alpha=0.8, linewidths=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    if positives.max() > 10 * max(1, positives.min()):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # without powers of ten, which need mathematics
        axes.xaxis.set_minor_formatter("")
    ends = differences.sort_values()
    for name in dict.fromkeys([*ends.index[:3], *ends.index[-3:]]):
        point = (positives[name], differences[name])
        axes.annotate(shorten(name), point, textcoords="offset points", xytext=(4, 3), fontsize=7)
    axes.set(xlabel="test positives of the class", ylabel="difference, points", title=title)
    axes.margins(0.12)
    return f"Difference of test AP against class frequency: {title}"


def pseudo_labels(axes: Axes, quality: dict, entries: str) -> str:
    label_quality.draw_curves(axes, quality, entries)
    return f"Quality of the pseudo-labels against the threshold, {entries} entries"


# Figures for a paper: at the width of a column, with embedded fonts


def write(rows: list[Row], folder: str | Path) -> list[Path]:
    """Write the figures of each data set; returns the files."""
    folder, written = writable_folder(Path(folder), "--figures"), []
    for dataset, members in by(rows, lambda row: row.dataset).items():
        here = sorted(ranked(members)[:MOST_ROWS], key=lambda row: row.number)
        for name, draw in FIGURES.items():
            with matplotlib.rc_context(PAPER):
                figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
                if not draw(axes := figure.subplots(), here):
                    continue
                _legend(axes)
                for path in (folder / f"{dataset}_{name}.{kind}" for kind in ("pdf", "png")):
                    with atomic(path) as temporary:
                        figure.savefig(temporary, format=path.suffix[1:])
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
    drawn = [draw_band(axes, row, "val_mAP", label=_name(row), **look(number)) for number, row in enumerate(rows)]
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
    scored = [row for row in rows if len(row.test) and "threshold" in row.shown]
    swept = by((row for row in scored if row.distinguishing.keys() <= {"threshold"}), lambda row: row.loss)
    curves = [members for members in swept.values() if len(members) > 1]
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
