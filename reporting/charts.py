"""The page's charts: matplotlib's SVG, with the page's own text colour, so that they suit light and dark."""

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pseudo_labels import label_quality

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8b5cf6", "#a16207")  # Okabe and Ito's
LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # of rows that share a colour: SVG, CSS
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    "text.parse_math": False,  # a class may be called a$b$
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
MOST_BARS = 40  # classes in a bar chart; of more, those at both ends


def look(row: int) -> dict[str, str]:
    """Colour and dashes of a row of the table; the first 32 rows differ."""
    return {"color": COLOURS[row % len(COLOURS)], "linestyle": list(LINES)[row // len(COLOURS) % len(LINES)]}


def swatch(row: int) -> Markup:
    """The same as a short line beside the row's name."""
    of_row = look(row)
    return Markup(f'<span class="swatch" style="border-top:3px {LINES[of_row["linestyle"]]} {of_row["color"]}"></span>')


def _chart(description: str, draw: Callable[[Axes], object], width: float = 4.4, height: float = 2.9) -> Markup:
    """SVG of the axes that `draw` fills; the page sets its width."""
    buffer, metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Type", "Format"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    head, rest = text[text.index("<svg") :].replace(INK, "currentColor").split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return Markup(head) + Markup(' role="img" aria-label="{}">').format(description) + Markup(rest)


def draw_band(axes: Axes, histories: list[pd.DataFrame], name: str, gid: str = "", **options: object) -> bool:
    """Mean of a column of the histories over the epochs, with a band of one deviation; False if it is empty."""
    table = pd.concat([history.set_index("epoch")[name] for history in histories], axis=1).dropna(how="all")
    middle, spread = table.mean(axis=1), table.std(axis=1).fillna(0)
    if len(table):
        marker = "o" if len(table) < 3 else None
        axes.plot(middle.index, middle, linewidth=1.3, marker=marker, markersize=3, gid=gid, **options)
        band = (middle.index, middle - spread, middle + spread)
        axes.fill_between(*band, color=options["color"], alpha=0.15, lw=0, gid=f"{gid}-band")
    return len(table) > 0


def curves(rows: dict[int, list[pd.DataFrame]], name: str, title: str) -> Markup | None:
    """Mean and deviation of each row over its runs; None if no run has such numbers.

    rows  {number of the row: histories of its runs}; the line's id is NAME-NUMBER
    name  train_loss or val_mAP
    """
    if not any(history[name].notna().any() for histories in rows.values() for history in histories):
        return None

    def draw(axes: Axes) -> None:
        for number, histories in rows.items():
            draw_band(axes, histories, name, gid=f"{name}-{number}", **look(number))
        axes.set(xlabel="epoch", title=title)
        if name == "val_mAP":
            axes.set_ylim(top=min(axes.get_ylim()[1], 100))
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _chart(f"{title} of {len(rows)} settings", draw)


def bars(values: pd.Series, title: str, xlabel: str) -> Markup:
    """Horizontal bars, in the order of the series from the top; of many those at both ends."""
    if len(values) > MOST_BARS:
        values = pd.concat([values[: MOST_BARS // 2], values[-MOST_BARS // 2 :]])

    def draw(axes: Axes) -> None:
        axes.barh(range(len(values)), values, color=np.where(values >= 0, COLOURS[2], COLOURS[3]))
        axes.set_yticks(range(len(values)), map(shorten, values.index), fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set(xlabel=xlabel, title=title)
        axes.grid(axis="y", visible=False)
        axes.margins(y=0.01)

    return _chart(f"{xlabel}: {title}", draw, height=max(2.2, 0.9 + 0.19 * len(values)))


def trials(values: pd.Series, title: str) -> Markup:
    """A point for each trial, its validation mAP against its number, and a line for the best so far."""

    def draw(axes: Axes) -> None:
        axes.scatter(values.index, values, s=18, color=COLOURS[0], alpha=0.8, linewidths=0, label="trial")
        axes.plot(values.index, values.cummax(), color=COLOURS[3], linewidth=1.3, drawstyle="steps-post", label="best")
        axes.set(xlabel="trial; the first has the default settings", ylabel="validation mAP, %", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)

    return _chart(f"validation mAP of {len(values)} trials", draw)


def against_frequency(positives: pd.Series, differences: pd.Series, title: str) -> Markup:
    """A point for each class: difference of AP against the number of its test positives."""

    def draw(axes: Axes) -> None:
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

    return _chart(f"Difference of test AP against class frequency: {title}", draw)


def pseudo_labels(quality: dict, entries: str) -> Markup:
    description = f"Quality of the pseudo-labels against the threshold, {entries} entries"
    return _chart(description, lambda axes: label_quality.draw_curves(axes, quality, entries))


def shorten(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
