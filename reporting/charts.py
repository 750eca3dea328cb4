"""The page's charts: matplotlib's SVG, with the page's own text colour, so that they suit light and dark."""

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import label_quality
from reporting.runs import Epoch

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#06b6d4", "#a16207", "#84cc16", "#64748b")
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
LINES = ("-", "--", ":", "-.")  # of rows that share a colour
MOST_BARS = 40  # classes in a bar chart; of more, those at both ends


def colour(row: int) -> str:
    return COLOURS[row % len(COLOURS)]


def _svg(figure: Figure, description: str) -> Markup:
    buffer = io.StringIO()
    about = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    head, rest = text.split(">", 1)  # the page says how wide it is
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return Markup(head) + Markup(' role="img" aria-label="{}">').format(description) + Markup(rest)


def _chart(description: str, draw, width: float = 4.4, height: float = 2.9) -> Markup:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        return _svg(figure, description)


def curves(runs: Sequence[tuple[int, int, list[Epoch]]], name: str, title: str) -> Markup:
    """A line for each run.

    runs  (number of its row in the table, seed, history); the line's id is NAME-ROW-SEED
    name  train_loss or val_mAP
    """

    def draw(axes: Axes) -> None:
        for row, seed, history in runs:
            points = [(e.epoch, getattr(e, name)) for e in history if getattr(e, name) is not None]
            if points:
                look = dict(
                    color=colour(row),
                    linestyle=LINES[row // len(COLOURS) % len(LINES)],
                    linewidth=1.3,
                    markersize=3,
                    marker="o" if len(points) < 3 else None,
                )
                axes.plot(*zip(*points, strict=True), gid=f"{name}-{row}-{seed}", **look)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _chart(f"{title} of {len(runs)} runs", draw)


def class_differences(names: Sequence[str], differences: Sequence[float], title: str) -> Markup:
    """Horizontal bars, the largest gain on top."""
    order = np.argsort(differences, kind="stable")[::-1]
    if len(order) > MOST_BARS:
        order = np.r_[order[: MOST_BARS // 2], order[-MOST_BARS // 2 :]]

    def draw(axes: Axes) -> None:
        values = [differences[place] for place in order]
        axes.barh(range(len(order)), values, color=[COLOURS[2] if value >= 0 else COLOURS[3] for value in values])
        axes.set_yticks(range(len(order)), [shorten(names[place]) for place in order], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set(xlabel="difference of test AP, percentage points", title=title)
        axes.grid(axis="y", visible=False)
        axes.margins(y=0.01)

    return _chart(f"Difference of test AP per class: {title}", draw, height=max(2.2, 0.9 + 0.19 * len(order)))


def against_frequency(
    names: Sequence[str], positives: Sequence[int], differences: Sequence[float], title: str
) -> Markup:
    """A point for each class: difference of AP against the number of its test positives."""

    def draw(axes: Axes) -> None:
        axes.scatter(positives, differences, s=18, color=COLOURS[0], alpha=0.8, linewidths=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        if max(positives) > 10 * max(1, min(positives)):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")  # not 10 to the power of, which needs mathematics
            axes.xaxis.set_minor_formatter("")
        for place in dict.fromkeys([*np.argsort(differences)[:3], *np.argsort(differences)[-3:]]):
            point = (positives[place], differences[place])
            axes.annotate(shorten(names[place]), point, textcoords="offset points", xytext=(4, 3), fontsize=7)
        axes.set(xlabel="test positives of the class", ylabel="difference, points", title=title)
        axes.margins(0.12)

    return _chart(f"Difference of test AP against class frequency: {title}", draw)


def pseudo_labels(about: dict, entries: str) -> Markup:
    def draw(axes: Axes) -> None:
        label_quality.draw_curves(axes, about, entries)

    return _chart(f"Quality of the pseudo-labels against the threshold, {entries} entries", draw)


def shorten(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
